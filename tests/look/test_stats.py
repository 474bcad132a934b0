"""Figures: the same as counting one by one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_grids import Drawn, Piece, grids, recipe, write
from rich.console import Console

from pipeline.look.stats import Distribution, render, stats
from pipeline.plan.turns import turn_starts
from pipeline.read.conversation import Part
from pipeline.store.counts import Counts

RECIPE = recipe()
NUMBER = RECIPE.layout.index()


def delays(grid: Drawn) -> list[int]:
    """The definition, turn by turn."""
    starts = turn_starts([Part(role, "", 0) for role in grid.roles])  # type: ignore[arg-type]
    found = []
    for first, end in zip(starts, [*starts[1:], len(grid.roles)], strict=False):
        spans = {part: [p for p in grid.pieces if p.part == part] for part in range(first, end)}
        answers = [p for p in spans if grid.roles[p] == "answer" and spans[p]]
        if not answers:
            continue
        users = [p for p in spans if grid.roles[p] == "user" and spans[p] and p < answers[0]]
        if users:
            last = max(piece.start + len(piece.tokens) - 1 for piece in spans[users[-1]])
            found.append(min(piece.start for piece in spans[answers[0]]) - last)
    return found


def rows(grid: Drawn) -> int:
    return max((piece.start + len(piece.tokens) for piece in grid.pieces), default=0)


def same(found: Distribution | None, values: list[int]) -> None:
    if not values:
        assert found is None
        return
    assert found is not None
    expected = [
        len(values),
        np.mean(values),
        min(values),
        np.median(values),
        np.quantile(values, 0.9),
        max(values),
    ]
    assert msgspec.structs.astuple(found) == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(grids(RECIPE.layout), max_size=5), max_size=3))
def test_figures_are_what_counting_one_by_one_gives(shards: list[list[Drawn]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = stats(write(Path(folder), RECIPE, shards))
    every = [grid for shard in shards for grid in shard]
    tokens = sum(len(piece.tokens) for grid in every for piece in grid.pieces)
    assert figures.grids == len(every)
    assert figures.tokens == figures.passes.one_sequence == tokens
    assert figures.passes.streams == sum(map(rows, every))
    assert figures.cells == len(NUMBER) * sum(map(rows, every))
    assert [s.tokens for s in figures.streams] == [
        sum(len(p.tokens) for grid in every for p in grid.pieces if p.stream == number) for number in NUMBER.values()
    ]
    same(figures.rows, [rows(grid) for grid in every])
    turns = [delay for grid in every for delay in delays(grid)]
    same(figures.answer_delay and figures.answer_delay.rows, turns)
    if figures.answer_delay:
        assert figures.answer_delay.early == np.mean(np.array(turns) <= 0)
    if figures.longest:
        most = [rows(grid) for grid in every]
        assert figures.longest.id == f"chats.jsonl:{most.index(max(most))}"


def test_the_delay_of_the_answer(tmp_path: Path) -> None:
    """Row 9 is the input's last; an answer from row 11 on can know it."""
    user, output = NUMBER["user"], NUMBER["output"]
    grid = Drawn(["user", "answer"], [Piece(user, 0, 0, [5] * 10), Piece(output, 11, 1, [6])])
    figures = stats(write(tmp_path, RECIPE, [[grid]]))
    assert figures.answer_delay is not None
    assert figures.answer_delay.rows.median == 2
    assert figures.answer_delay.early == 0


def test_an_empty_dataset_has_figures_too(tmp_path: Path) -> None:
    counts = Counts(read=2, quarantined=2, quarantine_reasons={"invalid_json": 2}, dropped_parts={"think": 3})
    figures = stats(write(tmp_path, RECIPE, [[]], counts))
    assert (figures.grids, figures.density, figures.rows, figures.longest) == (0, 0, None, None)
    assert figures.quarantine_reasons == {"invalid_json": 2}
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    render(figures, console)
    text = console.export_text()
    assert "2 invalid_json" in text
    assert "3 think" in text


def test_no_shards_at_all(tmp_path: Path) -> None:
    assert stats(write(tmp_path, RECIPE, [])).grids == 0


@settings(deadline=None, max_examples=10)
@given(st.lists(grids(RECIPE.layout), min_size=1, max_size=4), st.sampled_from([80, 120]))
def test_it_fits_on_a_screen(drawn: list[Drawn], width: int) -> None:
    reasons = {f"reason_{number}": number for number in range(16)}
    counts = Counts(read=120, quarantined=120, quarantine_reasons=reasons, dropped_parts={"think": 3})
    with tempfile.TemporaryDirectory() as folder:
        figures = stats(write(Path(folder), RECIPE, [drawn], counts))
    console = Console(width=width, file=tempfile.TemporaryFile("w+"))  # noqa: SIM115
    with console.capture() as captured:
        render(figures, console)
    lines = captured.get().splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= width


def test_figures_are_json(tmp_path: Path) -> None:
    figures = stats(write(tmp_path, RECIPE, [[Drawn(["user"], [Piece(NUMBER["user"], 0, 0, [5])])]]))
    document = msgspec.to_builtins(figures)
    assert msgspec.json.decode(msgspec.json.encode(figures)) == document
    assert document["streams"][NUMBER["user"]]["share"] == 1
