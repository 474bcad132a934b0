"""What README.md shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, pipeline, write_lines

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _block(language: str) -> str:
    """The one block in that language; "" for what is only shown."""
    (block,) = [text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S) if name == language]
    return block


def test_the_grid_is_printed_today(tmp_path: Path) -> None:
    options = ["--input", ROOT / "examples" / "corpus", "--set", "layout=chat-2", "--ray", "off"]
    ran = pipeline("convert", *options, "--out", tmp_path / "out")
    assert ran.code == 0, ran.output
    shown = pipeline("show", tmp_path / "out", "--id", "reasoning.jsonl.zst:7", columns=80)
    assert shown.code == 0, shown.output
    assert [line.rstrip() for line in shown.output.rstrip().splitlines()] == _block("").splitlines()


def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_lines(tmp_path / "chats.jsonl", 5)
    assert pipeline("convert", "--input", corpus, "--out", tmp_path / "grids", "--ray", "off").code == 0
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(_block("python"), "README.md", "exec"), names)
    grid, dataset = names["grid"], names["ds"]
    assert len(dataset) == 5 and grid.spans
    assert grid.dense().shape == (grid.num_rows, len(dataset.layout.streams))
    assert names["columns"].ids[-1] == "chats.jsonl:4"
