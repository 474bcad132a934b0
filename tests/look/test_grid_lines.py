"""Rendered grids: they fit the terminal, and hold every token of every lane in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from random_grids import TEXTS, TOKENIZER_BUILTIN, Drawn, grids, recipe
from rich.cells import cell_len

from pipeline.grid.ids import token_ids
from pipeline.grid.tokens import Spelling
from pipeline.layout import Clock, Layout, Stream
from pipeline.layout_file import load_layout
from pipeline.look.cells import JOINER, SILENCE
from pipeline.look.lines import grid_lines
from pipeline.look.view import GridView
from pipeline.store.dataset import Span

AGENT = recipe().layout
COGNITION = load_layout("cognition-10")
MARKS = str.maketrans("", "", f" {SILENCE}{JOINER}")


def view(drawn: Drawn, layout: Layout = AGENT) -> GridView:
    spans = [
        Span(layout.streams[p.stream].name, p.start, np.array(p.tokens, np.int32), p.part)
        for p in sorted(drawn.pieces, key=lambda p: (p.stream, p.start))
    ]
    rows = max((span.start + len(span.tokens) for span in spans), default=0)
    tokens = sum(len(span.tokens) for span in spans)
    end = token_ids(layout, TOKENIZER_BUILTIN).end_id
    return GridView("chats.jsonl:0", layout.streams, rows, tokens, spans, TOKENIZER_BUILTIN, end)


def lines(grid: GridView, width: int, **options: Any) -> list[str]:
    return [line.plain for line in grid_lines(grid, width, **options)]


def said(grid: GridView, lane: int) -> list[str]:
    return ["".join(piece.text for piece in placed.cell.body) for placed in grid.lanes()[lane]]


def plain(texts: list[str]) -> str:
    return "".join(texts).translate(MARKS)


anything = st.one_of(st.sampled_from(TEXTS), st.text(max_size=30))
orientations = st.sampled_from(["auto", "right", "down"])


@given(grids(AGENT, anything), st.integers(40, 200), orientations, st.booleans())
def test_every_line_fits(drawn: Drawn, width: int, orientation: str, compact: bool) -> None:
    for line in lines(view(drawn), width, orientation=orientation, compact=compact):
        assert cell_len(line) <= width
        assert "\n" not in line


@given(grids(COGNITION, anything), st.integers(40, 120))
def test_ten_streams_fit_too(drawn: Drawn, width: int) -> None:
    assert all(cell_len(line) <= width for line in lines(view(drawn, COGNITION), width, orientation="down"))


@given(grids(AGENT), st.integers(60, 160), st.booleans())
def test_to_the_right_every_lane_holds_its_tokens_in_order(drawn: Drawn, width: int, compact: bool) -> None:
    grid = view(drawn)
    gutter = max(len(stream.name) for stream in grid.streams) + 1
    shown = lines(grid, width, orientation="right", compact=compact)
    for lane, stream in enumerate(grid.streams):
        own = [line[gutter:] for line in shown[4:] if line[:gutter].rstrip() == stream.name]
        assert plain(own) == plain(said(grid, lane))


@given(grids(AGENT))
def test_down_every_row_is_one_line(drawn: Drawn) -> None:
    grid = view(drawn)
    shown = lines(grid, 200, orientation="down", compact=False)
    digits = len(str(grid.num_rows))
    rows = [line for line in shown[4:] if line[:digits].strip().isdecimal()]
    assert [int(line[:digits]) for line in rows] == list(range(grid.num_rows))
    cells: dict[int, list[str]] = {row: [] for row in range(grid.num_rows)}
    for lane in grid.lanes():
        for placed in lane:
            cells[placed.row].append("".join(piece.text for piece in placed.cell.body))
    assert [plain([line[digits:]]) for line in rows] == [plain(cells[row]) for row in range(grid.num_rows)]


def _tokens(text: str) -> list[int]:
    return TOKENIZER_BUILTIN.encode([text])[0].tolist()


def _grid(*spans: tuple[str, int, str], layout: Layout) -> GridView:
    made = [Span(stream, start, np.array(_tokens(text), np.int32), 0) for stream, start, text in spans]
    rows = max(span.start + len(span.tokens) for span in made)
    return GridView("a:0", layout.streams, rows, sum(len(s.tokens) for s in made), made, TOKENIZER_BUILTIN, None)


def test_long_silence_is_told_in_one_line() -> None:
    layout = load_layout("chat-2")
    grid = _grid(("user", 0, "A"), ("output", 40, "Yes."), layout=layout)
    assert any("39 silent rows" in line for line in lines(grid, 80))
    assert not any("silent rows" in line for line in lines(grid, 80, compact=False))


def test_lanes_that_rest_are_left_out_after_the_first_block() -> None:
    layout = load_layout("chat-think-3")
    grid = _grid(("user", 0, "one two three " * 40), ("output", 3, "four five " * 40), layout=layout)
    assert sum(line.startswith("think") for line in lines(grid, 80)) == 1
    assert sum(line.startswith("think") for line in lines(grid, 80, compact=False)) > 3


def test_orientation_follows_what_takes_fewer_lines() -> None:
    busy = _grid(*((s.name, 0, " everything together" * 20) for s in COGNITION.streams), layout=COGNITION)
    quiet = _grid(("User", 0, "one voice " * 40), ("Output", 9, "and another " * 30), layout=COGNITION)
    assert lines(busy, 80) == lines(busy, 80, orientation="down")
    assert lines(quiet, 80) == lines(quiet, 80, orientation="right")
    few = load_layout("chat-2")
    assert lines(_grid(("user", 0, "x " * 90), layout=few), 80)[4].startswith(" ")


def test_a_clock_ticks_where_nothing_is_stored() -> None:
    clock = Stream("clock", "input", clock=Clock(3, "tick"))
    layout = Layout("c", (clock, Stream("user", "input")), {})
    grid = _grid(("user", 0, "a b c d e f g"), layout=layout)
    shown = lines(grid, 80)
    row = next(line for line in shown if line.startswith("clock"))
    assert row.count("tick") == -(-grid.num_rows // 3)


def test_names_from_outside_are_harmless() -> None:
    layout = Layout("c", (Stream("us\x1b[2Jer", "input"),), {})
    grid = _grid(("us\x1b[2Jer", 0, "hi"), layout=layout)._replace(id="a\x1b]0;b\x07.jsonl:0")
    assert "\x1b" not in "".join(lines(grid, 80))


def test_an_empty_grid_is_a_header() -> None:
    grid = GridView("a:0", AGENT.streams, 0, 0, [], TOKENIZER_BUILTIN, None)
    assert lines(grid, 80)[1].startswith("0 rows · 0 tokens · 7 streams · density 0%")


class Counting:
    """A tokenizer that counts how many spans were made into text."""

    def __init__(self) -> None:
        self.spans = 0

    def spell(self, ids: NDArray[np.int32]) -> Spelling:
        self.spans += 1
        return TOKENIZER_BUILTIN.spell(ids)


@pytest.mark.parametrize("orientation", ["auto", "right", "down"])
def test_the_first_lines_of_a_long_grid_do_not_wait_for_the_last(orientation: str) -> None:
    spans = [("user", 100 * number, " word" * 100) for number in range(1000)]
    counting = Counting()
    grid = _grid(*spans, layout=load_layout("chat-2"))._replace(tokenizer=counting)  # type: ignore[arg-type]
    shown = iter(grid_lines(grid, 80, orientation))  # type: ignore[arg-type]
    for _ in range(40):
        next(shown)
    assert counting.spans < 20
    assert sum(1 for _ in shown) > 1000
    assert counting.spans >= 1000
