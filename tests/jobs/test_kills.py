"""Killed at any moment, a run that is started again gives the bytes of one that was never killed.

First at every moment at which a file appears or goes away, one after another; then at random ones, from outside.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
from running import Made, assert_same, contents, finish, pipeline, start, write_lines

from pipeline.store.place import Place

_CLEAN = multiprocessing.get_context("forkserver")  # forks from a process without threads
_CLEAN.set_forkserver_preload(
    ["jobs.run", "jobs.progress", "jobs.retry", "pipeline.cli", "pipeline.look.summary", "running"]
)


def _killed_at(moment: int, arguments: list[str]) -> None:
    """Run a command that kills itself: before or after the n-th change of what is on disk."""
    moments = count()

    def deadly(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*given: Any, **named: Any) -> Any:
            if next(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            result = change(*given, **named)
            if next(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return changed

    Path.replace = deadly(Path.replace)  # type: ignore[method-assign]
    Place.delete = deadly(Place.delete)  # type: ignore[method-assign]
    Place.delete_folder = deadly(Place.delete_folder)  # type: ignore[method-assign]
    code = pipeline(*arguments).code
    os._exit(code)


def _kills(arguments: list[str], prepare: Callable[[], None]) -> Iterator[int]:
    """Kill the command at its first moment, its second, … until it lives to its end."""
    for moment in count():
        prepare()
        process = _CLEAN.Process(target=_killed_at, args=(moment, arguments))
        process.start()
        process.join()
        if process.exitcode == 0:
            return
        assert process.exitcode == -signal.SIGKILL
        yield moment


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    """A run of two shards, one with quarantine."""
    corpus = write_lines(tmp_path / "chats.jsonl", 8, bad=7)
    return ["convert", "--input", str(corpus), "--set", "shard.records=4", "--ray", "off"]


def test_a_run_killed_at_every_change_of_the_disk(run: list[str], tmp_path: Path) -> None:
    """Between writing a file and naming it, between parts and commit, between manifest and removing ``_work/`` too."""
    undisturbed = _make(run, tmp_path / "undisturbed")
    made = [tmp_path / "never"]
    command = [*run, "--out", ""]

    def prepare() -> None:
        made.append(tmp_path / str(len(made)))
        command[-1] = str(made[-1])

    kills = 0
    for _ in _kills(command, prepare):
        kills += 1
        again = pipeline(*command)
        assert again.code == 0, again.output
        assert_same(made[-1], undisturbed)
    assert kills > 20


def test_fresh_killed_at_every_change_of_the_disk(run: list[str], tmp_path: Path) -> None:
    """What another recipe made is deleted; killed in the middle of it, the same command ends it. So does one without
    ``--fresh``: nothing of the old dataset is taken for its own."""
    undisturbed = _make(run, tmp_path / "undisturbed")
    command = [*run, "--out", str(tmp_path / "out")]

    def prepare() -> None:
        ran = pipeline(*command, "--fresh", "--set", "k=7")
        assert ran.code == 0, ran.output

    for moment in _kills([*command, "--fresh"], prepare):
        again = pipeline(*command, *(["--fresh"] if moment % 2 or moment < 2 else []))
        assert again.code == 0, again.output
        assert_same(tmp_path / "out", undisturbed)


def _make(run: list[str], out: Path) -> dict[str, bytes]:
    ran = pipeline(*run, "--out", out)
    assert ran.code == 0, ran.output
    return contents(out)


@pytest.mark.parametrize("seed", range(5))
def test_the_driver_killed_at_random(large: Made, tmp_path: Path, seed: int) -> None:
    """Three kills, each of the run that goes on after the last: one while it starts or soon after, two at work."""
    chance = random.Random(seed)
    out = tmp_path / "out"
    command = [*large.options, "--out", str(out), "--ray", "off"]
    shards = sum(name.startswith("data/") for name in large.contents)
    halfway = 0
    for more in chance.sample([0, chance.randint(1, 15), chance.randint(1, 15)], 3):
        before = len(_commits(out))
        process = start(command)
        if more:
            _wait_for(lambda: len(_commits(out)) >= before + more, process)  # noqa: B023 -- used at once
            time.sleep(chance.uniform(0, 0.1))  # anywhere in a shard, or two
        else:
            time.sleep(chance.uniform(0, 1))
        alive = process.poll() is None
        process.kill()
        output, _ = process.communicate()
        assert alive and process.returncode == -signal.SIGKILL, f"it had ended before it could be killed: {output}"
        halfway += 0 < len(_commits(out)) < shards
    assert halfway >= 2
    ran = pipeline(*command)
    assert ran.code == 0, ran.output
    assert_same(out, large.contents)


@pytest.mark.ray
def test_the_driver_killed_on_a_cluster(large: Made, cluster: str, tmp_path: Path) -> None:
    """Its workers go with it, and a run that goes on in this process makes the same."""
    command = [*large.options, "--out", str(tmp_path / "out")]
    for kill in (1, 2):
        process = start([*command, "--ray", cluster, "--workers", "2"])
        _wait_for(lambda: len(_commits(tmp_path / "out")) >= 6 * kill, process)  # noqa: B023 -- used at once
        assert _workers(cluster)
        process.kill()
        process.communicate()
        _wait_for(lambda: not _workers(cluster))
    ran = pipeline(*command, "--ray", "off")
    assert ran.code == 0, ran.output
    assert_same(tmp_path / "out", large.contents)


@pytest.mark.ray
def test_workers_killed_at_random(large: Made, cluster: str, tmp_path: Path) -> None:
    """Up to eight workers are killed, at any moment, and replaced: one run, nothing lost, nothing twice."""
    chance = random.Random(7)
    process = start([*large.options, "--out", str(tmp_path / "out"), "--ray", cluster, "--workers", "2"])
    killed: list[int] = []
    worked: set[int] = (
        set()
    )  # those that die as they start, one after another, end the run: it is told that they cannot

    def kill() -> None:
        until = 0.0
        while process.poll() is None and len(killed) < 8:
            time.sleep(0.02)
            workers = _workers(cluster)
            worked.update(worker.pid for worker in workers if worker.info["cmdline"][0] == "ray::_Worker.run")
            for worker in [worker for worker in workers if worker.pid in worked - set(killed)][:1]:
                if time.monotonic() >= until:
                    with suppress(psutil.NoSuchProcess):  # it has ended meanwhile, of its own
                        worker.kill()
                    killed.append(worker.pid)
                    until = time.monotonic() + chance.uniform(0.05, 0.4)

    killer = threading.Thread(target=kill)
    killer.start()
    ran = finish(process)
    killer.join()
    assert ran.code == 0, ran.output
    died = ran.output.count("a worker has died")
    assert 4 <= died <= len(killed)  # the last ones may have had nothing to do any more
    assert f"{died} attempts lost with their workers" in ran.output
    assert "raylet" not in ran.output
    assert_same(tmp_path / "out", large.contents)


@pytest.mark.ray
def test_interrupted_from_the_keyboard(large: Made, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal. The run stops with one message, leaves no process, and resumes."""
    command = [*large.options, "--out", str(tmp_path / "out")]
    process = start([*command, "--ray", "local", "--workers", "2"])
    _wait_for(lambda: len(_commits(tmp_path / "out")) > 2, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.killpg(process.pid, signal.SIGINT)
    ran = finish(process)
    assert ran.code == 130, ran.output
    said = [line for line in ran.output.splitlines() if not line.startswith("converting")]  # one line, or several
    assert said == [
        "",
        "Stopped. What was finished is kept: the same command goes on from there.",
    ]
    assert psutil.wait_procs(children, timeout=10)[1] == []
    resumed = pipeline(*command, "--ray", "off")
    assert resumed.code == 0 and "were there already" in resumed.output
    assert_same(tmp_path / "out", large.contents)


def _commits(out: Path) -> list[Path]:
    return list(out.glob("_work/commits/*.json"))


def _workers(cluster: str) -> list[psutil.Process]:
    """The processes of our actors, which Ray names after the class, on this cluster: there may be others."""
    own = re.compile(rf"--gcs-address=.*:{cluster.partition(':')[2]}")
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.NoSuchProcess):
            if (process.info["cmdline"] or [""])[0].startswith("ray::_Worker"):
                raylet = process.parent()
                if raylet is not None and any(own.fullmatch(word) for word in raylet.cmdline()):
                    found.append(process)
    return found


def _wait_for(condition: Callable[[], bool], process: Any = None) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
