"""Finding a grid, and colours only where they are wanted."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from random_grids import Drawn, Piece, recipe, write
from rich.console import Console
from running import chat, pipeline, write_lines

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


@pytest.fixture
def partly(tmp_path: Path) -> Path:
    """Records 0 to 9, of which 2, 5 and 8 are rejected, and 9, which is longer, is filtered."""
    corpus = write_lines(tmp_path / "chats.jsonl", 9, bad=3)
    with corpus.open("a") as stream:
        stream.write(json.dumps(chat(9, words=200)) + "\n")
    options = ["--set", "filter.max_characters=600", "--set", "shard.records=4", "--ray", "off"]
    assert pipeline("convert", "--input", corpus, "--out", tmp_path / "out", *options).code == 0
    return tmp_path / "out"


@pytest.mark.parametrize(("record", "shard", "line"), [(2, 0, 1), (5, 1, 1), (8, 2, 1)])
def test_a_record_in_quarantine_is_shown_with_its_reason(partly: Path, record: int, shard: int, line: int) -> None:
    ran = pipeline("show", partly, "--id", f"chats.jsonl:{record}", "--no-pager")
    path = partly / "quarantine" / f"part-{shard:05d}.jsonl"
    (stored,) = [json.loads(row) for row in path.read_text().splitlines()]
    assert ran.code == 2
    assert f"chats.jsonl:{record}: is in quarantine: invalid_json: {stored['message']}" in ran.output
    assert f"line {line} of {path}" in ran.output and "filtered" not in ran.output


def test_a_filtered_record_is_said_to_be_filtered(partly: Path) -> None:
    ran = pipeline("show", partly, "--id", "chats.jsonl:9", "--no-pager")
    assert ran.code == 2 and "it was filtered" in ran.output and "quarantine" not in ran.output


def test_quarantine_is_shown_where_nothing_was_converted(tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "chats.jsonl", 3, bad=1)
    assert pipeline("convert", "--input", corpus, "--out", tmp_path / "out", "--ray", "off").code == 1
    ran = pipeline("show", tmp_path / "out", "--id", "chats.jsonl:1", "--no-pager")
    assert ran.code == 2 and "is in quarantine: invalid_json: " in ran.output and "line 2 of" in ran.output
    ran = pipeline("show", tmp_path / "out", "--id", "chats.jsonl:7", "--no-pager")
    assert ran.code == 2 and "no such record" in ran.output


def test_a_damaged_quarantine_is_named(partly: Path) -> None:
    path = partly / "quarantine" / "part-00001.jsonl"
    path.write_text("{\n")
    ran = pipeline("show", partly, "--id", "chats.jsonl:5", "--no-pager")
    assert ran.code == 2 and f"{path}: line 1 cannot be read" in ran.output
    path.unlink()
    ran = pipeline("show", partly, "--id", "chats.jsonl:5", "--no-pager")
    assert ran.code == 2 and f"{path}: missing" in ran.output


def test_colours_are_the_console_s_business(dataset: Dataset) -> None:
    grid = find_grid(dataset)
    plain = "".join(as_strings(grid_lines(grid, 80), Console(file=io.StringIO(), width=80)))
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    coloured = "".join(as_strings(grid_lines(grid, 80), console))
    assert plain == "".join(line.plain + "\n" for line in grid_lines(grid, 80))
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
