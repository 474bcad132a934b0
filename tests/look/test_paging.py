"""``show`` on a terminal, as a person sees it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pexpect
import pytest
from running import ROOT, pipeline, write_lines

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """One grid that takes more lines than the terminal has."""
    corpus = write_lines(tmp_path / "chats.jsonl", 1, words=400)
    ran = pipeline("convert", "--input", corpus, "--out", tmp_path / "out", "--ray", "off")
    assert ran.code == 0, ran.output
    return tmp_path / "out"


def _show(dataset: Path, *options: str, **environment: str) -> pexpect.spawn[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PAGER", "LESS", "COLUMNS", "NO_COLOR")}
    return pexpect.spawn(
        sys.executable,
        ["-m", "pipeline", "show", str(dataset), *options],
        cwd=ROOT,
        env={**kept, "TERM": "xterm-256color", **environment},  # type: ignore[arg-type]
        dimensions=(24, 80),
        encoding="utf-8",
        timeout=30,
    )


@pytest.mark.skipif(shutil.which("less") is None, reason="needs less")
def test_a_long_grid_is_paged_in_colour(dataset: Path) -> None:
    terminal = _show(dataset)
    terminal.expect(r"\n(\x1b\[\w*)*:")  # the prompt of less, below a full page
    page: str = terminal.before
    assert "chats.jsonl:0" in page and _COLOUR.search(page)
    assert "ESC" not in page  # how less shows an escape that it does not pass on
    terminal.send("q")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


@pytest.mark.parametrize("pager", [True, False])
def test_the_lines_fit_the_terminal(dataset: Path, pager: bool) -> None:
    terminal = _show(dataset, *([] if pager else ["--no-pager"]), PAGER="cat")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    printed: str = terminal.before
    assert bool(_COLOUR.search(printed)) is not pager  # cat is not known to take colours
    shown = pipeline("show", dataset, columns=80).output.rstrip().splitlines()
    assert _COLOUR.sub("", printed).replace("\r", "").rstrip().splitlines() == shown
    assert len(shown) > 24 and max(map(len, shown)) <= 80
