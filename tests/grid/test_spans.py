"""Spans and the dense view are two forms of one grid."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid.spans import Spans, build_spans
from pipeline.store.dataset import Columns, Silence
from pipeline.store.format import schema_with_metadata
from pipeline.store.writer import Rows, write_parquet

STREAMS = ("user", "think", "out")
SILENCE, END = 1000, 1001


@st.composite
def scheduled(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int, list[int], bool]]]:
    """Grids of segments that do not overlap: (grid, stream, first row, tokens, end marker), in any order."""
    grids = draw(st.integers(0, 4))
    segments = []
    for grid in range(grids):
        for stream in range(len(STREAMS)):
            row = 0
            for _ in range(draw(st.integers(0, 3))):
                row += draw(st.integers(0, 3))
                tokens = draw(st.lists(st.integers(0, 999), max_size=4))
                end = draw(st.booleans())
                segments.append((grid, stream, row, tokens, end))
                row += len(tokens) + end
    return grids, draw(st.permutations(segments))


def build(grids: int, segments: list[tuple[int, int, int, list[int], bool]]) -> Spans:
    def integers(values: list[int]) -> np.ndarray:
        return np.array(values, np.int64)

    lengths = integers([len(tokens) for *_, tokens, _ in segments])
    return build_spans(
        grids,
        integers([grid for grid, *_ in segments]),
        integers([stream for _, stream, *_ in segments]),
        integers([start for _, _, start, _, _ in segments]),
        integers([-1] * len(segments)),
        np.array([token for *_, tokens, _ in segments for token in tokens], np.int32),
        np.cumsum(lengths) - lengths,
        lengths,
        np.array([end for *_, end in segments], np.bool_),
        END,
    )


def columns(grids: int, spans: Spans, silence: Silence | None = None) -> Columns:
    """The spans written to Parquet and read back."""
    rows = Rows(
        [f"a:{g}" for g in range(grids)], ["a"] * grids, list(range(grids)), [b"0" * 32] * grids, ["{}"] * grids,
        [0] * (grids + 1), [], [], [],
    )  # fmt: skip
    data = write_parquet([spans], [rows], schema_with_metadata({}, ""))
    table = pq.read_table(pa.BufferReader(data))
    return Columns(
        table.select, table.num_rows, STREAMS, silence or Silence(np.full(len(STREAMS), SILENCE, np.int32), ())
    )


@given(scheduled())
@settings(max_examples=150)
def test_dense_and_spans_are_the_same_grid(case: tuple[int, list[tuple[int, int, int, list[int], bool]]]) -> None:
    grids, segments = case
    stored = columns(grids, build(grids, segments))
    cells, offsets = stored.dense()
    assert len(stored) == grids == len(offsets) - 1
    for number in range(grids):
        own = [(s, start, [*tokens, *[END] * end]) for g, s, start, tokens, end in segments if g == number]
        said = sorted((s, start, tokens) for s, start, tokens in own if tokens)
        grid = stored.grid(number)
        assert [(STREAMS.index(s.stream), s.start, s.tokens.tolist()) for s in grid.spans] == said
        expected = np.full((max([start + len(t) for _, start, t in said], default=0), len(STREAMS)), SILENCE)
        for stream, start, tokens in said:
            expected[start : start + len(tokens), stream] = tokens
        dense = grid.dense()
        assert dense.dtype == np.int32
        assert np.array_equal(dense, expected)
        assert np.array_equal(cells[offsets[number] : offsets[number + 1]], expected)
        assert grid.num_rows == len(expected)
        assert grid.num_tokens == np.count_nonzero(dense != SILENCE)
        assert spans_of(dense) == merged(said)


def spans_of(dense: np.ndarray) -> list[tuple[int, int, list[int]]]:
    """What a dense grid says: its runs of cells that are not silent."""
    runs: list[tuple[int, int, list[int]]] = []
    for stream in range(dense.shape[1]):
        for row, token in enumerate(dense[:, stream].tolist()):
            if token == SILENCE:
                continue
            if runs and runs[-1][0] == stream and runs[-1][1] + len(runs[-1][2]) == row:
                runs[-1][2].append(token)
            else:
                runs.append((stream, row, [token]))
    return runs


def merged(spans: list[tuple[int, int, list[int]]]) -> list[tuple[int, int, list[int]]]:
    """Spans that follow each other without a pause as one."""
    runs: list[tuple[int, int, list[int]]] = []
    for stream, start, tokens in spans:
        if runs and runs[-1][0] == stream and runs[-1][1] + len(runs[-1][2]) == start:
            runs[-1][2].extend(tokens)
        else:
            runs.append((stream, start, list(tokens)))
    return runs


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_clock_ticks_in_the_dense_view_of_every_grid(every: int) -> None:
    """A clock is stored nowhere: it says its tick at rows 0, every, 2 · every, … of each grid."""
    silence = Silence(np.full(3, SILENCE, np.int32), ((1, every, 77),))
    segments = [(0, 0, 0, [1, 2, 3, 4], False), (1, 2, 1, [5], True)]
    stored = columns(2, build(2, segments), silence)
    cells, offsets = stored.dense()
    for number, rows in ((0, 4), (1, 3)):
        ticks = [77 if row % every == 0 else SILENCE for row in range(rows)]
        assert stored.grid(number).dense()[:, 1].tolist() == ticks
        assert cells[offsets[number] : offsets[number + 1], 1].tolist() == ticks
