"""Stream attention inside the decoders of transformers, through its attention interface: no model file is forked.

What a call of the model is given as ``stream_cells`` reaches this function in every layer: an :class:`Index` (training),
or any object with a method ``attend(module, q, k, v, scale)``, such as the cache of the decoder or the probe of
``refuse``. No entry is made in transformers' mask interface: without one, no mask is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from pipeline.errors import UserError
from trainer.attention import Index, stream_attention

NAME = "streams"

#: What a model may hand to an attention function, and how it is called where a model is refused.
_NOT_COMPUTED = {
    "softcap": "soft-capping of attention scores",
    "s_aux": "attention sinks",
    "sliding_window": "a sliding window, which may be set to null where it can be done without",
    "dropout": "attention dropout, which may be set to 0",
    "attention_mask": "an attention mask of its own",
}
#: Said to every attention function, and without a meaning here.
_NO_MATTER = {"is_causal", "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states"}


class NotToldError(UserError):
    """A model with stream attention was not told its cells."""


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    stream_cells: Any = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query [B, H, S, D], key, value [B, Hk, S, D]; returns [B, S, H, D].

    Raises UserError, naming what the model asked for, where that is not computed here.
    """
    if attention_mask is not None or any(value is not None for value in options.values()):
        _refuse(module, options | {"attention_mask": attention_mask})
    # Under autocast a norm with float32 weights leaves queries and keys wider than values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if isinstance(stream_cells, Index):
        return stream_attention(query, key, value, stream_cells, scaling).transpose(1, 2), None
    if stream_cells is None:
        raise NotToldError(
            "a model with stream attention must be told its cells (stream_cells); to use it as an ordinary "
            "decoder, open it with AutoModelForCausalLM.from_pretrained"
        )
    return stream_cells.attend(module, query, key, value, scaling).transpose(1, 2), None


def _refuse(module: nn.Module, options: dict[str, Any]) -> None:
    """Raise UserError for options that change what is computed, naming all of them."""
    wanted = [
        _NOT_COMPUTED.get(name, f"'{name}', which stream attention does not know") + _said_in(module, name, given)
        for name, given in options.items()
        if name not in _NO_MATTER and given is not None and not (isinstance(given, bool | int | float) and not given)
    ]
    if wanted:
        raise UserError(
            f"the attention of this model ({type(module).__name__}) wants {' and '.join(wanted)}; it cannot be trained here"
        )


def _said_in(module: nn.Module, name: str, given: Any) -> str:
    """The keys of config.json that an option comes from, as far as they can be told: models call them differently."""
    config: Any = getattr(module, "config", None)
    if config is None or not isinstance(given, int | float):
        return f" ({name})"
    words = ("att", "drop") if name == "dropout" else (name,)
    keys = [key for key, value in config.to_dict().items() if value == given and all(word in key for word in words)]
    return f" ({', '.join(keys)} in config.json)" if keys else f" ({name})"


AttentionInterface.register(NAME, attend)


def use_streams(backbone: PreTrainedModel) -> None:
    """Have every layer of a decoder attend by :func:`attend`."""
    backbone.config._attn_implementation = NAME
    for module in backbone.modules():
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation = NAME


def decoder_layers(backbone: PreTrainedModel) -> nn.ModuleList:
    """The layers of a decoder. Raises UserError where they are not found."""
    count = backbone.config.get_text_config().num_hidden_layers
    for module in backbone.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(
        f"{type(backbone).__name__} keeps its {count} layers where they are not found; it cannot be trained"
    )
