"""What changes the cost of a model and nothing of what it computes."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from trainer.model.attention import decoder_layers


def checkpoint_layers(backbone: PreTrainedModel) -> None:
    """Keep the inputs of layers only, and compute the rest again in the backward."""
    how = {"use_reentrant": False}
    if hasattr(backbone, "activation_checkpointing_enable"):  # the newer name of the same
        backbone.activation_checkpointing_enable(how)
    else:
        backbone.gradient_checkpointing_enable(how)


def compile_layers(backbone: PreTrainedModel, backend: Any = "inductor") -> None:
    """Compile every layer. Shapes that change are left open: the number of keys differs from pack to pack."""
    for layer in decoder_layers(backbone):
        layer.compile(backend=backend)
