"""Which models can be trained: found out at load by running one on three cells, not by a list of names.

Every cell is alone in its conversation, so attention gives it its own value back. Then (1) every layer must ask for
attention, and for nothing that is not computed; (2) no cell may have an influence on another; (3) the logits must be the
output embedding of the last hidden state, as the loss takes them.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import UserError
from trainer.model.attention import decoder_layers
from trainer.model.vocabulary import tables


class _Alone:
    """Attention of cells that see themselves alone. Remembers who asked."""

    def __init__(self) -> None:
        self.asked: set[nn.Module] = set()

    def attend(
        self, module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        self.asked.add(module)
        return v.repeat_interleave(q.shape[1] // v.shape[1], 1)


@torch.no_grad()
def check(backbone: PreTrainedModel) -> None:
    """Raise UserError, naming what is in the way, for a model that cannot be trained on streams.

    The model must use stream attention already (``attention.use_streams``).
    """
    name = type(backbone).__name__
    training = backbone.training
    cells = _Alone()
    embedding, _ = tables(backbone)
    x = embedding[:3][None] + 0.02 * torch.randn(
        1, 3, embedding.shape[1], generator=torch.Generator().manual_seed(0)
    ).to(embedding)
    positions = torch.arange(3, device=x.device)[None]
    decoder = backbone.get_decoder()
    try:
        backbone.train()  # attention dropout is asked for in training alone
        decoder(inputs_embeds=x, position_ids=positions, use_cache=False, stream_cells=cells)
        backbone.eval()
        _check_layers(backbone, name, cells)

        hidden = decoder(inputs_embeds=x, position_ids=positions, use_cache=False, stream_cells=cells)[0]
        changed = torch.cat([x[:, :1] + x[:, :1].flip(-1) + 1, x[:, 1:]], 1)
        after = decoder(inputs_embeds=changed, position_ids=positions, use_cache=False, stream_cells=cells)[0]
        if not _close(after[:, 1:], hidden[:, 1:]):
            raise UserError(
                f"{name}: its layers mix cells beside attention (a convolution, a recurrence, …), so what is hidden "
                f"from a cell could not be kept from it; it cannot be trained on streams"
            )
        logits = backbone(inputs_embeds=x, position_ids=positions, use_cache=False, stream_cells=cells).logits
        if not _close(logits, backbone.get_output_embeddings()(hidden)):
            raise UserError(
                f"{name}: it scales or caps its logits (logit_scale, final_logit_softcapping, …), which the loss here "
                f"does not; it cannot be trained"
            )
    finally:
        backbone.train(training)


def _check_layers(backbone: PreTrainedModel, name: str, cells: _Alone) -> None:
    """Raise UserError where a layer did not attend."""
    if not cells.asked:
        raise UserError(f"{name}: its attention does not use transformers' attention interface; it cannot be trained")
    for number, layer in enumerate(decoder_layers(backbone)):
        if cells.asked.isdisjoint(layer.modules()):
            kinds = ", ".join(dict.fromkeys(type(child).__name__ for child in layer.children()))
            raise UserError(
                f"{name}: layer {number} is not attention ({kinds}); models with recurrent, state-space or linear "
                f"attention layers cannot be trained on streams"
            )


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to rounding."""
    size = b.float().abs().max()
    return bool((a.float() - b.float()).abs().max() <= size * 64 * torch.finfo(b.dtype).eps)
