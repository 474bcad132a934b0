"""Spans of many conversations as flat arrays: the form in which grids are built, stored and read.

A shard's grids are never a million small objects: they are a few arrays and offsets into them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.grid.tokens import Ids

Integers = NDArray[np.int64]


class Spans(NamedTuple):
    """Spans of the grids of one shard, ordered by (grid, stream, start)."""

    #: ``grid_offsets[g] : grid_offsets[g + 1]`` are the spans of grid g. [grids + 1]
    grid_offsets: Integers
    #: Stream number, first row and part of every span. [spans]
    stream: NDArray[np.int16]
    start: NDArray[np.int32]
    part: NDArray[np.int32]
    #: ``token_offsets[s] : token_offsets[s + 1]`` are the tokens of span s. [spans + 1]
    token_offsets: Integers
    #: All tokens. [tokens]
    tokens: Ids
    #: Rows and tokens of every grid. [grids]
    num_rows: NDArray[np.int32]
    num_tokens: NDArray[np.int32]


def build_spans(
    grids: int,
    grid: Integers,
    stream: Integers,
    start: Integers,
    part: Integers,
    ids: Ids,
    begin: Integers,
    length: Integers,
    has_end: NDArray[np.bool_],
    end_id: int | None,
) -> Spans:
    """Order scheduled segments into spans and copy their tokens.

    Every argument from ``grid`` on has one element per segment, except ``ids``, of which segment i takes
    ``ids[begin[i] : begin[i] + length[i]]``, and then the end marker where ``has_end[i]``. Empty segments give no span.
    """
    said = length + has_end
    order = np.lexsort((start, stream, grid))
    order = order[said[order] > 0]
    grid, stream, start, part = grid[order], stream[order], start[order], part[order]
    said, has_end = said[order], has_end[order]

    token_offsets = np.zeros(len(order) + 1, np.int64)
    np.cumsum(said, out=token_offsets[1:])
    places = np.repeat(begin[order] - token_offsets[:-1], said) + np.arange(token_offsets[-1])
    marks = token_offsets[1:][has_end] - 1
    places[marks] = 0  # the place after a segment's last token may be after the last token of all
    tokens = ids[places] if len(ids) else np.zeros(len(places), np.int32)
    if len(marks):
        assert end_id is not None, "a stream has end markers, but the tokenizer has no end id"
        tokens[marks] = end_id

    spans_per_grid = np.bincount(grid, minlength=grids)
    grid_offsets = np.zeros(grids + 1, np.int64)
    np.cumsum(spans_per_grid, out=grid_offsets[1:])
    num_rows = np.zeros(grids, np.int64)
    np.maximum.at(num_rows, grid, start + said)
    num_tokens = np.bincount(grid, weights=said, minlength=grids)
    return Spans(
        grid_offsets,
        stream.astype(np.int16),
        start.astype(np.int32),
        part.astype(np.int32),
        token_offsets,
        tokens,
        num_rows.astype(np.int32),
        num_tokens.astype(np.int32),
    )
