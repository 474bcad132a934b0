"""Finding a grid, and colours only where they are wanted."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from random_grids import Drawn, Piece, recipe, write
from rich.console import Console

from pipeline.errors import UserError
from pipeline.look.lines import grid_lines
from pipeline.look.show import as_strings, find_grid
from pipeline.store.dataset import Dataset

RECIPE = recipe()
USER = RECIPE.layout.index()["user"]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    shards = [[Drawn(["user"], [Piece(USER, 0, 0, [65 + n, 66])]) for n in range(3)] for _ in range(2)]
    return write(tmp_path, RECIPE, shards)


def test_grids_are_found_by_id(dataset: Dataset) -> None:
    assert find_grid(dataset).id == "chats.jsonl:0"
    found = find_grid(dataset, "chats.jsonl:4")
    assert found.id == "chats.jsonl:4"
    assert found.spans[0].tokens.tolist() == [66, 66]


@pytest.mark.parametrize("wrong", ["chats.jsonl:6", "other.jsonl:0", "chats.jsonl", "chats.jsonl:0#1", "", "a#b:c#d"])
def test_a_wrong_id_is_answered_with_a_right_one(dataset: Dataset, wrong: str) -> None:
    with pytest.raises(UserError, match="--id"):
        find_grid(dataset, wrong)


def test_no_grids_no_show(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no grids"):
        find_grid(write(tmp_path, RECIPE, [[]]))


def test_colours_are_the_console_s_business(dataset: Dataset) -> None:
    grid = find_grid(dataset)
    plain = "".join(as_strings(grid_lines(grid, 80), Console(file=io.StringIO(), width=80)))
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    coloured = "".join(as_strings(grid_lines(grid, 80), console))
    assert plain == "".join(line.plain + "\n" for line in grid_lines(grid, 80))
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
