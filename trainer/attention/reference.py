"""The same attention in plain torch, with a dense mask: what the kernels must equal, and the path without Triton.

Takes memory for H · S² scores, so it is for tests, small models and devices that Triton does not know. Shapes as in
``op``: q, out [B, H, S, D], k, v [B, Hk, S, D], lse [B, H, S]; G = H / Hk query heads per key head.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from trainer.attention.index import Index


def dense_mask(index: Index) -> torch.Tensor:
    """What the index says, spelled out: bool [S, S] on the device of the index, row = who reads."""
    size = len(index)
    mask = torch.eye(size, dtype=torch.bool, device=index.queries.device)
    bounds = index.classes.tolist()
    for begin, end in pairwise(bounds):
        keys = torch.arange(begin, end, device=mask.device)
        seen = (index.lo[:, None] <= keys) & (keys < index.hi[:, None])  # [S, keys of the class]
        query, key = seen.nonzero(as_tuple=True)
        mask[index.queries[query].long(), index.keys[begin + key].long()] = True
    return mask


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: Index, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output in the type of q, and log-sum-exp in the type of the arithmetic: float32, or float64 for float64."""
    q_, k_, v_ = _grouped(q, k), _wide(k), _wide(v)
    lse = _scores(q_, k_, index, scale).logsumexp(-1)  # [B, Hk, G, S]
    probability = (_scores(q_, k_, index, scale) - lse[..., None]).exp()
    out = torch.einsum("bkgst,bktd->bkgsd", probability, v_)
    return out.reshape(q.shape).to(q.dtype), lse.reshape(q.shape[:3])


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
    """Gradients of q, k, v. With P = softmax(S), S = scale · q kᵀ and delta = Σ out · d_out:

    dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − delta), dQ = scale · dS K, dK = scale · dSᵀ Q, the last two summed over the group.
    """
    q_, k_, v_, g_ = _grouped(q, k), _wide(k), _wide(v), _grouped(d_out, k)
    probability = (_scores(q_, k_, index, scale) - _grouped(lse[..., None], k)).exp()
    delta = (_grouped(out, k) * g_).sum(-1, keepdim=True)
    d_scores = probability * (torch.einsum("bkgsd,bktd->bkgst", g_, v_) - delta) * scale
    d_q = torch.einsum("bkgst,bktd->bkgsd", d_scores, k_).reshape(q.shape)
    d_k = torch.einsum("bkgst,bkgsd->bktd", d_scores, q_)
    d_v = torch.einsum("bkgst,bkgsd->bktd", probability, g_)
    return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _grouped(x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """[B, H, S, D] as [B, Hk, G, S, D], at least float32."""
    return _wide(x).unflatten(1, (k.shape[1], -1))


def _scores(q: torch.Tensor, k: torch.Tensor, index: Index, scale: float) -> torch.Tensor:
    """Masked scores [B, Hk, G, S, S] of grouped queries."""
    scores = torch.einsum("bkgsd,bktd->bkgst", q, k) * scale
    return scores.masked_fill(~dense_mask(index), float("-inf"))
