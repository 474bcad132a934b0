"""Stream attention as one operation of torch, forward and backward written out.

Shapes: B batch, H query heads, Hk key heads (H a multiple of Hk), S cells, D head dim. Both directions are custom
operations: ``torch.compile`` and activation checkpointing see a black box with known shapes, and no autograd runs
inside. They choose where to run: Triton on a GPU, plain torch elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from trainer.attention import reference
from trainer.attention.configs import HEAD_DIMS
from trainer.attention.index import Index

try:
    from trainer.attention import launch
except ImportError:  # no Triton on this platform
    launch = None  # type: ignore[assignment]


def stream_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: Index, scale: float | None = None
) -> torch.Tensor:
    """Softmax attention of every cell to itself and to the cells that the index lets it see.

    q [B, H, S, D]; k, v [B, Hk, S, D] with H a multiple of Hk: query heads h · H / Hk and on belong to key head h. One
    index for the whole batch, on the same device. ``scale`` > 0, by default 1 / √D. Returns [B, H, S, D] in the type of
    q: bfloat16, float16 or float32 on a GPU, D ≤ 256; any floating type on the CPU, where memory grows with S².

    Differentiable in q, k and v, once. Two runs give the same bits.
    Raises ValueError for shapes, types and devices that do not fit.
    """
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(
            "stream_attention takes q [B, H, S, D] and k, v [B, Hk, S, D], "
            f"not {list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key heads")
    if index.queries.shape[0] != q.shape[2]:
        raise ValueError(f"the index has {index.queries.shape[0]} cells, q has {q.shape[2]}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one type, not {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device == index.queries.device:
        raise ValueError(
            f"q, k, v and the index must be on one device, not {q.device}, {k.device}, {v.device}, "
            f"{index.queries.device}; index.to(device) moves an index"
        )
    if scale is None:
        scale = 1 / math.sqrt(q.shape[3])
    if not scale > 0:
        raise ValueError(f"scale must be positive, not {scale}")
    if q.is_cuda and launch is not None and (q.dtype not in launch.DTYPES or q.shape[3] > HEAD_DIMS[-1]):
        raise ValueError(
            f"on a GPU q must be bfloat16, float16 or float32 with head dim up to 256, not {q.dtype}, {q.shape[3]}"
        )
    out: torch.Tensor
    out, _ = _forward(q, k, v, *_tensors(index), scale)
    return out


def _tensors(index: Index) -> tuple[torch.Tensor, ...]:
    """An index as arguments of an operation, which takes tensors alone. ``classes`` is one because it changes from
    sequence to sequence, and a number that changes would have torch.compile compile again."""
    return index.queries, index.lo, index.hi, index.keys, index.seen_lo, index.seen_hi, index.classes


def _laid_out(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """x in the memory layout that is announced to the compiler: that of ``like``, whichever of H and S comes first."""
    strides = torch.empty_like(like, device="meta").stride()
    return x if x.stride() == strides else torch.empty_like(like).copy_(x)


def _place(q: torch.Tensor) -> Any:
    """The module that computes where q is."""
    return launch if launch is not None and launch.usable(q) else reference


@torch.library.custom_op("trainer::stream_attention", mutates_args=())
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    queries: torch.Tensor,
    lo: torch.Tensor,
    hi: torch.Tensor,
    keys: torch.Tensor,
    seen_lo: torch.Tensor,
    seen_hi: torch.Tensor,
    classes: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [B, H, S, D], and log-sum-exp [B, H, S] for the backward."""
    index = Index(queries, lo, hi, keys, seen_lo, seen_hi, classes)
    out, lse = _place(q).forward(q, k, v, index, scale)
    return _laid_out(out, q), lse


@_forward.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    kind = torch.promote_types(q.dtype, torch.float32)
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=kind)


@torch.library.custom_op("trainer::stream_attention_backward", mutates_args=())
def _backward(
    d_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    queries: torch.Tensor,
    lo: torch.Tensor,
    hi: torch.Tensor,
    keys: torch.Tensor,
    seen_lo: torch.Tensor,
    seen_hi: torch.Tensor,
    classes: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v."""
    index = Index(queries, lo, hi, keys, seen_lo, seen_hi, classes)
    d_q, d_k, d_v = _place(q).backward(d_out, q, k, v, out, lse, index, scale)
    return _laid_out(d_q, q), d_k.contiguous(), d_v.contiguous()


@_backward.register_fake
def _(
    d_out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    d_k, d_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    return torch.empty_like(q), d_k, d_v


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, ctx.scale = inputs
    out, lse = output
    ctx.save_for_backward(*tensors[:3], out, lse, *tensors[3:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_out: torch.Tensor | None, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    nothing = (None,) * 8
    if d_out is None:
        return None, None, None, *nothing
    return *_backward(d_out, *ctx.saved_tensors, ctx.scale), *nothing


_forward.register_autograd(_differentiate, setup_context=_keep)
