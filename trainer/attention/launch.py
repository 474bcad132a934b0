"""From torch tensors to kernels: shapes, padding of the head dim, compaction of keys, and one launch after another.

Shapes as in ``op``: q, out [B, H, S, D], k, v [B, Hk, S, D], lse [B, H, S].
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor  # type: ignore[import-untyped]

from trainer.attention import kernels
from trainer.attention.configs import HEAD_DIMS, Config, Kernel, config
from trainer.attention.index import Index

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# The interpreter runs kernels on the CPU, for tests; a kernel is made for one or the other when it is imported.
INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)


def usable(q: torch.Tensor) -> bool:
    """Whether kernels can run where q is. The interpreter multiplies bfloat16 wrongly, so it does not take it."""
    return q.is_cuda or (INTERPRETED and q.device.type == "cpu" and q.dtype in (torch.float16, torch.float32))


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: Index, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output like q, and log-sum-exp in float32."""
    dim = q.shape[-1]
    q, k, v = (_padded(x) for x in (q, k, v))
    batch, heads, size, wide = q.shape
    out = torch.empty_like(q)
    lse = torch.empty(batch, heads, size, dtype=torch.float32, device=q.device)
    how = _config("forward", q)
    keys, values = _tiles(_keys(k, index), how.block_n), _tiles(_keys(v, index), how.block_n)
    with _on(q):
        kernels.forward[(triton.cdiv(size, how.block_m), heads, batch)](
            q, k, v, keys, values, out, lse, index.queries, index.lo, index.hi, scale,
            *_strides(q, k, v, out), heads, heads // k.shape[1], size, wide,
            how.block_m, how.block_n, **_options(how, q),
        )  # fmt: skip
    return out[..., :dim], lse


def backward(
    d_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    index: Index,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, in their types.

    d_k and d_v are added up in float32 where there are several classes; with one class there is one addition, of the
    own keys and the rest, in float32 too, and the buffer can have the type of the result.
    """
    dim = q.shape[-1]
    d_out, q, k, v, out = (_padded(x) for x in (d_out, q, k, v, out))
    batch, heads, size, wide = q.shape
    key_heads = k.shape[1]
    group = heads // key_heads
    bounds = index.classes.tolist()
    one_class = len(bounds) == 2
    d_q = torch.empty_like(q)
    added_up = k.dtype if one_class else torch.float32
    d_k, d_v = (torch.empty(k.shape, dtype=added_up, device=k.device) for _ in range(2))
    delta = torch.empty_like(lse)
    compact_k, compact_v = _keys(k, index), _keys(v, index)
    with _on(q):
        how = _config("own", q)
        kernels.own[(triton.cdiv(size, how.block_m), key_heads, batch)](
            q, k, v, out, d_out, lse, delta, d_k, d_v, scale,
            *_strides(q, k, v, out, d_out), heads, group, size, wide, how.block_m, **_options(how),
        )  # fmt: skip

        how = _config("backward_q", q)
        keys, values = _tiles(compact_k, how.block_n), _tiles(compact_v, how.block_n)
        kernels.backward_q[(triton.cdiv(size, how.block_m), heads, batch)](
            q, k, v, d_out, keys, values, lse, delta, d_q, index.queries, index.lo, index.hi, scale,
            *_strides(q, k, v, d_out, d_q), heads, group, size, wide,
            how.block_m, how.block_n, **_options(how, q),
        )  # fmt: skip

        how = _config("backward_kv", q)
        keys, values = _tiles(compact_k, how.block_n), _tiles(compact_v, how.block_n)
        if not one_class:
            q, d_out, lse, delta = (x.index_select(2, index.queries) for x in (q, d_out, lse, delta))
        queries, d_outs = _tiles(q, how.block_m), _tiles(d_out, how.block_m)
        lses, deltas = _numbers(lse, how.block_m), _numbers(delta, how.block_m)
        for begin, end in pairwise(bounds):
            if begin < end:
                kernels.backward_kv[(triton.cdiv(end - begin, how.block_n), key_heads, batch)](
                    queries, d_outs, lses, deltas, keys, values, d_k, d_v, index.keys, index.seen_lo,
                    index.seen_hi, scale, begin, end, heads, group, size, wide,
                    how.block_m, how.block_n, **_options(how, q),
                )  # fmt: skip
    return d_q[..., :dim], d_k[..., :dim].to(k.dtype), d_v[..., :dim].to(v.dtype)


def _padded(x: torch.Tensor) -> torch.Tensor:
    """x with the next larger head dim that the kernels know, and rows that a bulk copy can fetch."""
    dim = x.shape[-1]
    wide = next(d for d in HEAD_DIMS if d >= dim)
    if wide > dim:
        return pad(x, (0, wide - dim))
    aligned = x.stride(-1) == 1 and all(s * x.itemsize % 16 == 0 and s > 0 for s in x.stride()[:-1])
    return x if aligned and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def _keys(x: torch.Tensor, index: Index) -> torch.Tensor:
    """Keys or values in the order of the index, [B, Hk, N, D]; x itself where every cell is a key of the one class."""
    count = index.keys.shape[0]
    whole = len(index.classes) == 2 and count == len(index)
    # A descriptor needs a row, and with no keys no program reads it.
    return x if whole or count == 0 else x.index_select(2, index.keys)


def _tiles(x: torch.Tensor, rows: int) -> Any:
    """A descriptor that loads [1, 1, rows, D] of x [B, H, N, D]."""
    return TensorDescriptor.from_tensor(x, [1, 1, rows, x.shape[-1]])


def _numbers(x: torch.Tensor, count: int) -> Any:
    """A descriptor that loads [1, 1, count] of x [B, H, S], float32; rows begin at multiples of 16 bytes."""
    missing = -x.shape[-1] % 4
    return TensorDescriptor.from_tensor(pad(x, (0, missing)) if missing else x, [1, 1, count])


def _strides(*tensors: torch.Tensor) -> list[int]:
    """The strides of B, H and S of every tensor; those of D are 1."""
    return [stride for x in tensors for stride in x.stride()[:3]]


def _config(kernel: Kernel, x: torch.Tensor) -> Config:
    capability = torch.cuda.get_device_capability(x.device)[0] if x.is_cuda else 0
    return config(kernel, x.shape[-1], x.itemsize, capability)


def _options(how: Config, x: torch.Tensor | None = None) -> dict[str, Any]:
    """What a launch says beside its arguments; with x, the precision of its products too."""
    options: dict[str, Any] = {"num_warps": how.num_warps, "num_stages": how.num_stages, "enable_fp_fusion": True}
    if x is not None:
        options["PRECISION"] = "tf32x3" if x.dtype == torch.float32 else "ieee"
    return options


def _on(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Kernels are launched on the current device: make it that of x."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
