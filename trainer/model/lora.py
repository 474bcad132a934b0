"""Low-rank adapters, by peft: put into a decoder, and merged into its weights again."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from pipeline.errors import UserError
from trainer.config import ModelOptions


def add(backbone: PreTrainedModel, options: ModelOptions, seed: int) -> None:
    """Freeze a decoder and give its linear layers adapters, in float32. Raises UserError."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("model.tune: lora needs peft: pip install 'multistream-pipeline[lora]'") from None
    targets = list(options.lora_targets)
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,  # type: ignore[arg-type]  # peft takes fractions
        target_modules="all-linear" if targets == ["all-linear"] else targets,
    )
    torch.manual_seed(seed)  # the adapters are drawn from the global generator
    try:
        inject_adapter_in_model(config, backbone)
    except ValueError as error:
        raise UserError(f"model.lora_targets: {', '.join(targets)}: {error}") from None
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merge(backbone: PreTrainedModel) -> None:
    """Add the adapters to the weights that they adapt, and remove them."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return
    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, module.get_base_layer())
    if hasattr(backbone, "peft_config"):
        del backbone.peft_config
