"""Which models can be trained: found out at load by running one on three cells, not by a list of names.

Every cell is alone in its conversation, so attention gives it its own value back. Then (1) every layer must ask for
attention, in shapes and with nothing that is not computed; (2) no cell may have an influence on another, nor the position
of one on another; (3) the logits must be the output embedding of the last hidden state, as the loss takes them.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import UserError
from trainer.attention.configs import HEAD_DIMS
from trainer.model.attention import NotToldError, decoder_layers
from trainer.model.vocabulary import tables


class _Alone:
    """Attention of cells that see themselves alone. Remembers who asked, and the queries of each."""

    def __init__(self) -> None:
        self.asked: dict[nn.Module, torch.Tensor] = {}

    def attend(
        self, module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        self.asked[module] = q
        dims = {x.shape[-1] for x in (q, k, v)}
        if len(dims) > 1 or max(dims) > HEAD_DIMS[-1] or q.shape[1] % k.shape[1] or k.shape[1] != v.shape[1]:
            raise UserError(
                f"{type(module).__name__}: {_heads(q)} of queries, {_heads(k)} of keys, {_heads(v)} of values: stream "
                f"attention computes heads of one size up to {HEAD_DIMS[-1]}, a whole number of queries for every key; "
                f"this model cannot be trained"
            )
        return v.repeat_interleave(q.shape[1] // v.shape[1], 1)


def _heads(x: torch.Tensor) -> str:
    return f"{x.shape[1]} heads of {x.shape[-1]}"


@torch.no_grad()
def check(backbone: PreTrainedModel, rows: int = 3) -> None:
    """Raise UserError, naming what is in the way, for a model that cannot be trained on streams.

    The model must use stream attention already (``attention.use_streams``). ``rows``: of the longest conversation.
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
        try:
            decoder(inputs_embeds=x, position_ids=positions, use_cache=False, stream_cells=cells)
        except NotToldError:
            raise UserError(
                f"{name}: its layers do not hand on to attention what the model is called with; it cannot be trained"
            ) from None
        backbone.eval()
        _check_layers(backbone, name, cells)
        _check_positions(backbone, name, x, rows)

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


def _check_positions(backbone: PreTrainedModel, name: str, x: torch.Tensor, rows: int) -> None:
    """Raise UserError where the longest conversation has more rows than there are positions, or its rows turn the
    queries of shorter ones in the same pack."""
    queries = []
    for last in (2, max(2, rows - 1)):
        cells = _Alone()
        positions = torch.tensor([[0, 1, last]], device=x.device)
        try:
            backbone.get_decoder()(inputs_embeds=x, position_ids=positions, use_cache=False, stream_cells=cells)
        except IndexError:
            raise UserError(
                f"{name}: has no position {last}, and the longest conversation has {rows} rows; convert into "
                f"shorter ones (pipeline convert --max-rows … --long window)"
            ) from None
        queries.append(cells.asked)
    near, far = queries
    if not all(_close(far[module][:, :, :2], q[:, :, :2]) for module, q in near.items()):
        raise UserError(
            f"{name}: its position encoding changes when a conversation of {rows} rows is in a pack, for all others in it, "
            f"too (rope_type 'longrope' or 'dynamic' in config.json): convert into conversations of fewer than "
            f"original_max_position_embeddings rows (pipeline convert --max-rows … --long window), or set another rope_type"
        )


def _check_layers(backbone: PreTrainedModel, name: str, cells: _Alone) -> None:
    """Raise UserError where a layer did not attend."""
    if not cells.asked:
        raise UserError(f"{name}: its attention does not use transformers' attention interface; it cannot be trained")
    for number, layer in enumerate(decoder_layers(backbone)):
        if cells.asked.keys().isdisjoint(layer.modules()):
            kinds = ", ".join(dict.fromkeys(type(child).__name__ for child in layer.children()))
            raise UserError(
                f"{name}: layer {number} is not attention ({kinds}); models with recurrent, state-space or linear "
                f"attention layers cannot be trained on streams"
            )


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to rounding."""
    size = b.float().abs().max()
    return bool((a.float() - b.float()).abs().max() <= size * 64 * torch.finfo(b.dtype).eps)
