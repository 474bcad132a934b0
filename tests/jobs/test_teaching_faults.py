"""Servers that misbehave: every conversation is accounted for, and given the same answers the bytes are the same."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from running import Made, assert_same, contents, pipeline
from stub_server import Body, Fault, Faults, StubServer, random_faults
from taught import answer, is_probe, quarantine_lines, stored, write_injections, write_turns, wrong

_TRANSPORT = (
    Fault("status", status=429, retry_after="0"),
    Fault("status", status=500),
    Fault("status", status=503, retry_after="0"),
    Fault("drop"),
    Fault("garbage"),
    Fault("nonsense"),
)
#: Longer than any request takes here, and short for who waits for one that hangs.
_OPTIONS = ("--ray", "off", "--concurrency", "48", "--engine-timeout", "3")


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A thousand conversations, and what a server that always behaves makes of them."""
    folder = tmp_path_factory.mktemp("thousand")
    corpus = write_turns(folder / "chats.jsonl", 1000)
    options = ["convert", "--input", str(corpus), "--recipe", "align", "--set", "shard.records=150", *_OPTIONS]
    with StubServer(answer) as server:
        ran = pipeline(*options, "--engine", server.url, "--out", folder / "out")
    assert ran.code == 0, ran.output
    return Made(options, contents(folder / "out"))


def test_a_thousand_conversations_past_broken_transport(thousand: Made, tmp_path: Path) -> None:
    """Two servers that hang, break off, refuse, send rubbish and are killed: the bytes are those of servers that never do."""
    drawn = random_faults(0.07, kinds=_TRANSPORT)
    hangs = random_faults(0.01, seed=1, kinds=[Fault("hang")])
    hung = 0

    def faults(body: Body, seen: int) -> Fault | None:
        nonlocal hung
        if seen == 0 and not is_probe(body) and (fault := hangs(body, seen)):
            hung += 1
            return fault
        return drawn(body, seen)

    with StubServer(answer, faults) as one, StubServer(answer, faults) as other:
        kills = threading.Thread(target=_kill_by_turns, args=(one, other, (150, 400, 650, 900)))
        kills.start()
        ran = pipeline(*thousand.options, "--engine", f"{one.url},{other.url}", "--out", tmp_path / "out")
        kills.join()
        assert ran.code == 0, ran.output
        assert one.bodies and other.bodies and hung >= 4
        assert len(one.bodies) + len(other.bodies) > 1030
    assert_same(tmp_path / "out", thousand.contents)
    assert len(stored(tmp_path / "out.answers")) == 1000
    teacher = json.loads((tmp_path / "out/run.json").read_text())["teacher"]
    assert teacher["accepted"] == teacher["asked"] == 1000 and teacher["rejected"] == 0


@pytest.mark.parametrize("command", ["convert", "preview"])
def test_a_server_that_hangs_for_a_while_is_named_meanwhile(tmp_path: Path, command: str) -> None:
    corpus = write_turns(tmp_path / "chats.jsonl", 20)
    until: list[float] = []

    def faults(body: Body, seen: int) -> Fault | None:
        if not is_probe(body) and not until:
            until.append(time.monotonic() + 8)
        return Fault("hang") if until and time.monotonic() < until[0] else None

    with StubServer(answer, faults) as server:
        options = ["--ray", "off", "--out", tmp_path / "out"] if command == "convert" else ["--limit", "3"]
        ran = pipeline(command, "--input", corpus, "--recipe", "align", "--engine", server.url, "--engine-timeout", "2",
                       *options)  # fmt: skip
    assert ran.code == 0, ran.output
    assert f"the engine does not answer: {server.url}: no answer within 2 s" in ran.output
    assert command == "preview" or quarantine_lines(tmp_path / "out") == []


def _kill_by_turns(one: StubServer, other: StubServer, marks: Sequence[int]) -> None:
    """Kill a server whenever so many requests have come, and start it again at the same address."""
    for number, mark in enumerate(marks):
        while len(one.bodies) + len(other.bodies) < mark:
            time.sleep(0.01)
        server = (one, other)[number % 2]
        server.kill()
        time.sleep(0.2)
        server.revive()


def _by_chance(broken: float, truncated: float) -> Faults:
    """Faults that depend on nothing but luck, so that asking again would give other answers."""
    luck = random.Random(5)

    def faults(body: Body, _seen: int) -> Fault | None:
        if is_probe(body):
            return None
        drawn = luck.random()
        if drawn < truncated:
            return Fault("truncate")
        return luck.choice(_TRANSPORT) if drawn < truncated + broken else None

    return faults


@pytest.mark.parametrize(("recipe", "count"), [("align", 1000), ("blind", 60)])
def test_answers_that_are_wrong_are_replayed(recipe: str, count: int, tmp_path: Path) -> None:
    """Truncated and senseless answers, by chance: nothing is lost or doubled, and a replay gives the same and asks nothing."""
    corpus = write_turns(tmp_path / "chats.jsonl", count)
    options = ["convert", "--input", str(corpus), "--recipe", recipe, "--set", "shard.records=150", *_OPTIONS]
    options += ["--answers", str(tmp_path / "answers")]
    with StubServer(wrong(0.3), _by_chance(broken=0.03, truncated=0.3)) as server:
        ran = pipeline(*options, "--engine", server.url, "--out", tmp_path / "disturbed")
        assert ran.code == 0, ran.output
        asked = len(server.bodies)
    _check_accounts(tmp_path / "disturbed", count)

    with StubServer(answer) as server:
        ran = pipeline(*options, "--engine", server.url, "--out", tmp_path / "replayed")
        assert ran.code == 0, ran.output
        assert server.bodies == []
    assert_same(tmp_path / "replayed", contents(tmp_path / "disturbed"))
    teacher = json.loads((tmp_path / "replayed/run.json").read_text())["teacher"]
    lines = stored(tmp_path / "answers")
    assert teacher["asked"] == teacher["retried"] == 0 and teacher["from_store"] >= len(lines)
    assert len({line["key"] for line in lines}) == len(lines) <= asked


def _check_accounts(dataset: Path, count: int) -> None:
    manifest = json.loads((dataset / "dataset.json").read_text())
    counts = manifest["counts"]
    assert counts["read"] == count == counts["converted"] + counts["quarantined"] + counts["filtered"]
    assert set(manifest["quarantine_reasons"]) <= {"teacher_invalid", "teacher_truncated"}
    assert counts["quarantined"] > 0 and counts["converted"] > count // 3
    rejected = quarantine_lines(dataset)
    assert len({line["id"] for line in rejected}) == len(rejected) == counts["quarantined"]
    assert all(len(line["answers"]) == 4 for line in rejected)
    ran = pipeline("validate", dataset, "--strict")
    assert ran.code == 0, ran.output
    assert f"{counts['converted']:,}  records compared with their source" in ran.output


@pytest.mark.parametrize("recipe", ["align", "blind", "audit"])
def test_text_that_orders_the_teacher_about(recipe: str, tmp_path: Path) -> None:
    """Content is what it was, whatever it says, and so are the other conversations."""
    corpus = write_injections(tmp_path / "chats.jsonl")
    count = len(corpus.read_bytes().splitlines())
    with StubServer(answer) as server:
        ran = pipeline(
            "convert",
            "--input",
            corpus,
            "--recipe",
            recipe,
            "--engine",
            server.url,
            "--out",
            tmp_path / "out",
            *_OPTIONS,
        )
        assert ran.code == 0, ran.output
        systems = {body["messages"][0]["content"] for body in server.bodies if not is_probe(body)}
    assert len(systems) <= 2  # what instructs the teacher holds nothing of the corpus
    assert f"{count}  converted" in ran.output, ran.output
    ran = pipeline("validate", tmp_path / "out", "--strict")
    assert ran.code == 0 and f"{count}  records compared with their source, byte for byte" in ran.output, ran.output
