"""What a person sees while a run is under way: the same facts in a bar and in a log."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from running import write_lines

from jobs import progress
from jobs.executor import InProcess
from jobs.progress import Progress
from jobs.run import RunOptions, run
from jobs.teaching import Taught
from pipeline.grid.tokens import load_tokenizer
from pipeline.read.inputs import resolve_inputs
from pipeline.recipe import load_recipe
from pipeline.teach.counters import Counters

_FACTS = r"\d+ grids · [\d.]+ ?[kM]? tokens/s · \d quarantined"


def _shown(tmp_path: Path, terminal: bool) -> str:
    screen = io.StringIO()
    corpus = write_lines(tmp_path / "chats.jsonl", 20, bad=7)
    options = RunOptions(
        files=resolve_inputs([str(corpus)]),
        out=str(tmp_path / "out"),
        recipe=load_recipe("wait-k", ["shard.records=5"]),
        tokenizer=load_tokenizer("builtin"),
        ray="off",
    )
    with Progress(Console(file=screen, force_terminal=terminal, width=200, highlight=False)) as shown:
        run(options, shown)
        assert shown.counts.read == 20 and shown.counts.quarantined == 2
    return screen.getvalue()


def test_a_log_gets_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    monkeypatch.setattr(progress, "_FIRST", 0.0)
    lines = [line for line in _shown(tmp_path, terminal=False).splitlines() if not line.startswith("reading")]
    assert re.fullmatch(rf"converting [\d.]+ KB of input, {InProcess.description}", lines[0])
    assert len(lines) == 5
    for line in lines[1:]:
        assert re.fullmatch(rf"converting: \d+%, {_FACTS}, ETA 0:00:\d\d", line), line
    assert lines[-1].startswith("converting: 100%, 18 grids")


def test_a_log_is_not_flooded(tmp_path: Path) -> None:
    """A short run says that it has begun, and no more."""
    assert len(_shown(tmp_path, terminal=False).splitlines()) == 1


def test_a_terminal_gets_one_bar_that_goes_away(tmp_path: Path) -> None:
    shown = _shown(tmp_path, terminal=True)
    assert re.search(_FACTS, shown) and "\x1b[" in shown
    assert shown.endswith("\x1b[2K") or shown.rstrip("\r").endswith("\x1b[2K"), repr(shown[-60:])


def test_news_that_come_late_do_not_undo_newer_ones() -> None:
    shown = Progress()
    shown.taught(Taught("w", Counters(accepted=10), 0.0, number=2))
    shown.taught(Taught("w", Counters(accepted=4), 0.0, number=1))
    assert shown.asked is not None and shown.asked.accepted == 10


def test_why_an_engine_does_not_answer_is_told_once_not_by_every_worker_each_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(Console(file=screen, force_terminal=False, width=200)) as shown:
        for second in range(100):
            now[0] += 1
            for worker in "ab":
                trouble = f"http://{worker}:1/v1: status 429: try again in {second / 10} s"
                shown.taught(Taught(worker, Counters(), 0.0, trouble=trouble, number=second))
    told = [line for line in screen.getvalue().splitlines() if "does not answer" in line]
    assert [line.split()[5] for line in told] == ["http://a:1/v1:", "http://b:1/v1:"] * 2
