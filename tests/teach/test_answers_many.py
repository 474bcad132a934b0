"""Many processes with one answer store, killed at any moment: whoever used an answer used the same one."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from answer_writer import asked

from pipeline.teach.answers import AnswerStore

WRITER = Path(__file__).parent / "answer_writer.py"
QUESTIONS = 1500


def _start(store: Path, name: int, seed: int, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    command = [sys.executable, WRITER, store, str(seed), str(QUESTIONS)]
    with (store.parent / f"used-{name}").open("wb") as stream:
        return subprocess.Popen(command, stdin=stdin, stdout=stream)


def _used(folder: Path) -> dict[int, set[str]]:
    """Number of a question to all answers that some process has used."""
    used: dict[int, set[str]] = defaultdict(set)
    for path in folder.glob("used-*"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                number, _, text = line[:-1].partition("\t")
                used[int(number)].add(text)
    return used


def _stored(store: Path) -> list[str | None]:
    async def read() -> list[str | None]:
        opened = AnswerStore(str(store))
        found = [await opened.find(asked(number)) for number in range(QUESTIONS)]
        assert opened.faults == []
        await opened.close()
        return [answer and answer.text for answer in found]

    return asyncio.run(read())


def test_many_processes_that_are_killed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    chance = random.Random(1)
    seed = 0
    running: list[subprocess.Popen[bytes]] = []
    killed = finished = 0
    until = time.monotonic() + 180
    # Twelve are killed at some moment after they have begun to write; what they leave is finished by three more.
    while finished < 3 and time.monotonic() < until:
        while len(running) < 3:
            running.append(_start(store, seed, seed))
            seed += 1
        victim = chance.choice(running)
        if killed < 12:
            begun = tmp_path / f"used-{victim.args[3]}"  # type: ignore[index]
            while victim.poll() is None and begun.stat().st_size == 0:
                time.sleep(0.002)
            time.sleep(chance.random() * 0.05)
            victim.kill()
            killed += victim.wait() == -signal.SIGKILL
            running.remove(victim)
        else:
            assert victim.wait(60) == 0
            running.remove(victim)
            finished += 1
    for process in running:
        process.kill()
        process.wait()
    assert finished == 3 and killed >= 6

    assert len(_agreed(tmp_path)) > 3, "one process did everything: nothing was tested"


def test_many_processes_that_want_the_same_at_the_same_moment(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    processes = [_start(store, number, 7, subprocess.PIPE) for number in range(4)]
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("store-ready-*"))) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0]
    assert len(_agreed(tmp_path)) > 1, "one process did everything: nothing was tested"


def _agreed(folder: Path) -> set[str]:
    """That every process used the one answer that the store has; the processes whose answers those are."""
    used = _used(folder)
    assert sorted(used) == list(range(QUESTIONS))
    assert all(len(texts) == 1 for texts in used.values()), "two processes went on with two answers to one question"
    stored = _stored(folder / "store")
    assert [{text} for text in stored] == [used[number] for number in range(QUESTIONS)]
    lines = [line for path in (folder / "store").glob("*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    assert len(lines) == QUESTIONS, "one line per answer"
    return {text.split()[0] for text in stored if text}
