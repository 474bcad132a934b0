"""Killed at any moment while a teacher is asked, the same command goes on: the same bytes, and nothing is paid for twice."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import msgspec
import psutil
import pytest
from running import Made, assert_same, contents, finish, pipeline, spawned, start
from stub_server import Body, Fault, StubServer
from taught import answer, is_probe, write_turns
from test_kills import _wait_for, _workers

_CONCURRENCY = 8
_COUNT = 160


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Conversations of two turns, and what an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("asked")
    corpus = write_turns(folder / "chats.jsonl", _COUNT, turns=2)
    options = ["convert", "--input", str(corpus), "--recipe", "align", "--set", "shard.records=20"]
    options += ["--concurrency", str(_CONCURRENCY)]
    with StubServer(answer) as server:
        ran = pipeline(*options, "--engine", server.url, "--out", folder / "out", "--ray", "off")
    assert ran.code == 0, ran.output
    return Made(options, contents(folder / "out"))


class SlowServer(StubServer):
    """Takes a while for every answer, so that there is a middle to be killed in, and knows what it was asked when."""

    def __init__(self, seconds: float = 0.03) -> None:
        super().__init__(answer, lambda _body, _seen: Fault("slow", seconds=seconds))

    def questions(self, since: int = 0) -> Counter[str]:
        """How often every question was asked, but for those that only try the engine out."""
        return Counter(_question(body) for body in self.bodies[since:] if not is_probe(body))


def _question(asked: Body) -> str:
    """What tells questions apart, in a request to a server and in a line of the answer store."""
    sampling = asked.get("sampling", asked)
    messages = [message["content"] for message in asked["messages"]]
    return msgspec.json.encode([messages, sampling["seed"], sampling["temperature"]]).decode()


def _durable(answers: Path) -> set[str]:
    """The questions whose answers are on the disk."""
    return {_question(msgspec.json.decode(line)["request"]) for line in _lines(answers)}


def _lines(answers: Path) -> list[bytes]:
    lines = [line for path in answers.glob("*.jsonl") for line in path.read_bytes().splitlines(keepends=True)]
    return [line for line in lines if line.endswith(b"\n")]


def _command(asked: Made, server: StubServer, out: Path, *more: str) -> list[str]:
    return [*asked.options, "--engine", server.url, "--out", str(out), *(more or ("--ray", "off"))]


def test_the_driver_killed_at_random(asked: Made, tmp_path: Path) -> None:
    """Three times, each after some more answers: what was on the disk at a kill is never asked again."""
    chance = random.Random(3)
    answers = tmp_path / "out.answers"
    known: list[tuple[int, set[str]]] = []
    with SlowServer() as server:
        command = _command(asked, server, tmp_path / "out")
        for more in (5, 80, 110):
            before = len(_lines(answers))
            process = start(command)
            _wait_for(lambda: len(_lines(answers)) >= before + more, process)  # noqa: B023 -- used at once
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
            output, _ = process.communicate()
            assert process.returncode == -signal.SIGKILL, output
            time.sleep(0.2)  # what it had sent arrives
            known.append((len(server.bodies), _durable(answers)))
        ran = pipeline(*command)
        assert ran.code == 0, ran.output
        for since, durable in known:
            assert not durable & server.questions(since).keys()
        _check_paid(server, kills=3)
    assert_same(tmp_path / "out", asked.contents)


def _check_paid(server: SlowServer, kills: int) -> None:
    """Of all questions, only those were asked again that were in flight at a kill."""
    questions = server.questions()
    assert len(questions) == 2 * _COUNT
    assert questions.total() - len(questions) <= kills * _CONCURRENCY


def test_the_server_killed_and_back_again(asked: Made, tmp_path: Path) -> None:
    """At the same address, a moment later, three times; the run waits for it."""
    kills = 0

    def disturb(server: SlowServer, over: threading.Event) -> None:
        nonlocal kills
        while kills < 3 and not over.wait(0.3):
            if len(server.questions()) > 50 * kills:
                server.kill()
                kills += 1
                over.wait(0.3)
                server.revive()

    over = threading.Event()
    with SlowServer() as server:
        thread = threading.Thread(target=disturb, args=(server, over))
        thread.start()
        ran = pipeline(*_command(asked, server, tmp_path / "out"))
        over.set()
        thread.join()
        assert ran.code == 0, ran.output
        assert kills == 3
        _check_paid(server, kills * 2)  # an answer that is being sent when the connection breaks is lost
    assert_same(tmp_path / "out", asked.contents)


def test_interrupted_from_the_keyboard(asked: Made, tmp_path: Path) -> None:
    """While the server hangs: the run stops at once, with one message, and goes on where it was."""
    answers = tmp_path / "out.answers"
    hanging = threading.Event()

    def faults(_body: Body, _seen: int) -> Fault | None:
        return Fault("hang") if hanging.is_set() else Fault("slow", seconds=0.02)

    with StubServer(answer, faults) as server:
        command = _command(asked, server, tmp_path / "out")
        process = start(command)
        _wait_for(lambda: len(_lines(answers)) > 100, process)
        hanging.set()
        time.sleep(0.3)
        children = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        ran = finish(process)
        assert ran.code == 130 and time.monotonic() - began < 5, ran.output
        assert ran.output.splitlines()[1:] == [
            "",
            "Stopped. What was finished is kept: the same command goes on from there.",
        ]
        assert psutil.wait_procs(children, timeout=5)[1] == []
        hanging.clear()
        told, durable = len(server.bodies), _durable(answers)
        ran = pipeline(*command)
        assert ran.code == 0 and "at no cost" in ran.output, ran.output
        again = {_question(body) for body in server.bodies[told:] if not is_probe(body)}
        assert again and not durable & again
    assert_same(tmp_path / "out", asked.contents)


@pytest.mark.parametrize("concurrency", ["1", "300"])
def test_concurrency_changes_nothing(asked: Made, tmp_path: Path, concurrency: str) -> None:
    with StubServer(answer) as server:
        ran = pipeline(*_command(asked, server, tmp_path / "out"), "--concurrency", concurrency)
        assert ran.code == 0, ran.output
        assert server.most_in_flight <= int(concurrency)
    assert_same(tmp_path / "out", asked.contents)


@pytest.mark.ray
def test_on_ray_started_here(asked: Made, tmp_path: Path) -> None:
    """One worker; a user sees the run's own lines and nothing else."""
    with StubServer(answer) as server:
        ran = spawned(*_command(asked, server, tmp_path / "out", "--ray", "local", "--workers", "1"))
    assert ran.code == 0, ran.output
    assert_same(tmp_path / "out", asked.contents)
    first, *rest = [line for line in ran.output.splitlines() if not line.startswith("converting: ")]
    assert first.startswith("converting") and first.endswith("1 worker, Ray on this machine")
    assert rest[0].strip() == f"{_COUNT}  records read", ran.output
    assert f"{2 * _COUNT}  answers accepted, of stub" in ran.output


@pytest.mark.ray
def test_workers_killed_at_random(asked: Made, cluster: str, tmp_path: Path) -> None:
    """Two workers, of which three die: replaced, nothing lost, and nothing asked again but what was in flight."""
    answers = tmp_path / "out.answers"
    killed: list[int] = []
    with SlowServer(seconds=0.15) as server:
        process = start(_command(asked, server, tmp_path / "out", "--ray", cluster, "--workers", "2"))
        for count in (10, 80, 150):
            _wait_for(lambda: len(_lines(answers)) >= count, process)  # noqa: B023 -- used at once
            worker = next(worker for worker in _workers(cluster) if worker.pid not in killed)
            killed.append(worker.pid)
            worker.kill()
        ran = finish(process)
        assert ran.code == 0, ran.output
        assert ran.output.count("a worker has died") == 3
        assert "3 attempts lost with their workers" in ran.output
        _check_paid(server, kills=3)
    assert_same(tmp_path / "out", asked.contents)


def test_two_runs_share_their_answers(asked: Made, tmp_path: Path) -> None:
    """At the same time, of a model that never says the same twice; one is killed and goes on. Both are the same dataset."""
    luck = random.Random(11)

    def respond(body: Body) -> str:
        return answer(body if is_probe(body) else body | {"luck": luck.random()})

    answers = tmp_path / "answers"
    with StubServer(respond, lambda _body, _seen: Fault("slow", seconds=0.03)) as server:
        command = [*asked.options, "--engine", server.url, "--answers", str(answers), "--ray", "off"]
        one, other = (start([*command, "--out", str(tmp_path / name)]) for name in ("one", "other"))
        _wait_for(lambda: len(_lines(answers)) > 100, one)
        one.kill()
        one.communicate()
        assert one.returncode == -signal.SIGKILL
        ran = finish(other)
        assert ran.code == 0, ran.output
        ran = pipeline(*command, "--out", tmp_path / "one")
        assert ran.code == 0, ran.output
    assert_same(tmp_path / "one", contents(tmp_path / "other"))
    assert contents(tmp_path / "one")["data/part-00000.parquet"] != asked.contents["data/part-00000.parquet"]
    keys = [msgspec.json.decode(line)["key"] for line in _lines(answers)]
    assert len(keys) == len(set(keys)) == 2 * _COUNT
