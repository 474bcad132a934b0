"""Attention over the cells of stream grids: exact, fused, without an S×S mask.

``build_index`` turns rows, streams and conversations of S cells into a few integers per cell; ``stream_attention``
attends with them.
"""

from trainer.attention.index import Index, build_index
from trainer.attention.op import stream_attention

__all__ = ["Index", "build_index", "stream_attention"]
