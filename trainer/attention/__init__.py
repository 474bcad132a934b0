"""Attention over the cells of stream grids: exact, fused, without an S×S mask.

    index = build_index(rows, streams, docs)       # a few integers per cell
    out = stream_attention(q, k, v, index)         # q [B, H, S, D]; k, v [B, Hk, S, D]
"""

from trainer.attention.index import Index, build_index
from trainer.attention.op import stream_attention

__all__ = ["Index", "build_index", "stream_attention"]
