"""Cross-entropy of an output embedding, by chunks of cells: the logits of a whole sequence are never there at once.

N cells with a target, D hidden size, V vocabulary. The gradients are made together with the loss, chunk by chunk, since
then no logits are computed twice; they are added up in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

#: Cells whose logits are there at once: float32 [CHUNK, V], 0.6 GB for 150,000 tokens.
CHUNK = 1024

#: The table is filled up to a multiple of so many rows: matrix products of other sizes miss the fast kernels of a GPU.
ALIGNED = 8


class Head(NamedTuple):
    """The output embedding: a weight [V, D] and perhaps a bias [V]; perhaps rows [R, D] that stand in for rows ``ids``."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    ids: torch.Tensor | None = None


def chunked_cross_entropy(
    hidden: torch.Tensor, head: Head, targets: torch.Tensor, weights: torch.Tensor, chunk: int = CHUNK
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of the cross-entropies, and every cell's own.

    hidden [N, D]; targets int64 [N], ids below V; weights float [N]. Returns float32 [] and, without a gradient,
    float32 [N]. Differentiable in hidden and in the floating tensors of ``head``, once. The products are made in the
    type of autocast, or of ``hidden``.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    total: torch.Tensor
    total, each = _Chunked.apply(hidden, *head, targets, weights, dtype, chunk)
    return total, each


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        rows: torch.Tensor | None,
        ids: torch.Tensor | None,
        targets: torch.Tensor,
        weights: torch.Tensor,
        dtype: torch.dtype,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        given = (hidden, weight, bias, rows)
        wanted = ctx.needs_input_grad[:4]
        size = len(weight)
        table = weight.to(dtype)
        if rows is not None and ids is not None:
            table = table.index_copy(0, ids, rows.to(dtype))
        table = nn.functional.pad(table, (0, 0, 0, -size % ALIGNED)) if size % ALIGNED else table
        gradients = [
            torch.zeros_like(x, dtype=torch.float32) if x is not None and wants else None
            for x, wants in zip((hidden, table, bias, rows), wanted, strict=True)
        ]
        d_hidden, d_weight, d_bias, d_rows = gradients
        each = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for begin in range(0, len(targets), chunk):
                part = slice(begin, begin + chunk)
                x, target = hidden[part].to(dtype), targets[part, None]
                logits = (x @ table.T).float()
                logits[:, size:] = float("-inf")
                if bias is not None:
                    logits[:, :size] += bias.float()
                log_sum = logits.logsumexp(-1, keepdim=True)
                each[part] = (log_sum - logits.gather(-1, target))[:, 0]
                if not any(wanted):
                    continue
                # d loss / d logits = weight · (softmax − one-hot)
                slope = logits.sub_(log_sum).exp_()
                slope.scatter_add_(-1, target, torch.full_like(log_sum, -1))
                slope *= weights[part, None].float()
                if d_bias is not None:
                    d_bias += slope[:, :size].sum(0)
                slope = slope.to(dtype)
                if d_hidden is not None:
                    d_hidden[part] = slope @ table
                if d_weight is not None:
                    d_weight += slope.T @ x
                if d_rows is not None:
                    d_rows += slope[:, ids].T @ x
        if d_weight is not None and ids is not None:
            d_weight[ids] = 0  # those rows were not used
        ctx.gradients = [
            None if d is None or x is None else d[: len(x)].to(x.dtype) for d, x in zip(gradients, given, strict=True)
        ]
        ctx.mark_non_differentiable(each)
        return (each * weights.float()).sum(), each

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = [None if d is None else d.mul_(scale.to(d.dtype)) for d in ctx.gradients]
        ctx.gradients = None
        return *gradients, *(None,) * 5
