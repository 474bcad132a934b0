"""``pipeline retry`` asks again where a teacher has failed, and what it makes can be replayed like anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import assert_same, contents, pipeline
from stub_server import Body, StubServer
from taught import answer, is_probe, quarantine_lines, stored, write_turns

from pipeline.store.place import Place
from pipeline.teach.settings import TeacherSettings

_ATTEMPTS = {TeacherSettings().sampling(attempt, 1).seed: attempt for attempt in range(100)}


def stubborn(body: Body) -> str:
    """Takes every third question wrong four times, every sixth ten times, and every twelfth for ever."""
    asked = str(body["messages"][1]["content"])
    patience = {0: 1000, 3: 4, 6: 10, 9: 4}
    for number in range(24):
        if f" have {number} boxes" in asked and _ATTEMPTS[body["seed"]] < patience.get(number % 12, 0):
            return '{"1": "later"}'
    return answer(body)


@pytest.fixture
def convert(tmp_path: Path) -> list[str]:
    """24 conversations in four shards: two can never be converted, two after two retries, four after one."""
    corpus = write_turns(tmp_path / "chats.jsonl", 24)
    options = ["convert", "--input", str(corpus), "--recipe", "align", "--set", "shard.records=6", "--ray", "off"]
    return [*options, "--answers", str(tmp_path / "answers")]


def _replayed(server: StubServer, convert: list[str], out: Path) -> dict[str, bytes]:
    """What a run to another place makes of the answers that there are; it asks nothing."""
    asked = len(server.bodies)
    ran = pipeline(*convert, "--engine", server.url, "--out", out)
    assert ran.code == 0, ran.output
    assert [body for body in server.bodies[asked:] if not is_probe(body)] == []
    return contents(out)


def test_every_retry_asks_on_where_the_last_one_stopped(convert: list[str], tmp_path: Path) -> None:
    with StubServer(stubborn) as server:
        ran = pipeline(*convert, "--engine", server.url, "--out", tmp_path / "out")
        assert ran.code == 0 and "8 teacher_invalid" in ran.output, ran.output
        assert {len(line["answers"]) for line in quarantine_lines(tmp_path / "out")} == {4}
        for attempts, message in (
            (8, "Recovered 4 of 8 in quarantine."),
            (12, "Recovered 2 of 4 in quarantine."),
            (16, "Nothing was recovered: the 2 records"),
        ):
            ran = pipeline("retry", tmp_path / "out", "--ray", "off")
            assert ran.code == 0 and message in ran.output, ran.output
            assert {len(line["answers"]) for line in quarantine_lines(tmp_path / "out")} == {attempts}
            assert_same(tmp_path / "out", _replayed(server, convert, tmp_path / f"replayed-{attempts}"))
    ran = pipeline("validate", tmp_path / "out", "--strict")
    assert ran.code == 0, ran.output
    seeds = {line["request"]["sampling"]["seed"] for line in stored(tmp_path / "answers")}
    assert len(seeds) == 16
    assert max(line["request"]["sampling"]["temperature"] for line in stored(tmp_path / "answers")) == 1.2


def test_a_retry_that_is_stopped_goes_on(convert: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of its writes: what is in quarantine by then does not make the next one ask more."""
    put = Place.put
    left = 10**9

    def stopping(self: Place, name: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        put(self, name, data)

    with StubServer(stubborn) as server:
        assert pipeline(*convert, "--engine", server.url, "--out", tmp_path / "out").code == 0
        monkeypatch.setattr(Place, "put", stopping)
        stops = 0
        while True:
            left = 7 + stops % 3
            code = pipeline("retry", tmp_path / "out", "--ray", "off").code
            if code == 0:
                break
            assert code == 130
            stops += 1
        left = 10**9
        assert stops > 2
        assert {len(line["answers"]) for line in quarantine_lines(tmp_path / "out")} == {8}
        assert_same(tmp_path / "out", _replayed(server, convert, tmp_path / "replayed"))


def test_the_key_is_not_kept(convert: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the dataset, not with the answers, not in what is said when it is refused; and a retry uses it too."""
    key = "sk-marker-0123456789"
    monkeypatch.setenv("PIPELINE_API_KEY", key)
    with StubServer(stubborn, key=key) as server:
        said = pipeline(*convert, "--engine", server.url, "--out", tmp_path / "out")
        assert said.code == 0, said.output
        retried = pipeline("retry", tmp_path / "out", "--ray", "off")
        assert retried.code == 0 and "Recovered 4 of 8" in retried.output
        monkeypatch.setenv("PIPELINE_API_KEY", key + "-old")
        refused = pipeline(*convert, "--engine", server.url, "--out", tmp_path / "refused")
    assert refused.code == 2 and "set PIPELINE_API_KEY in the environment" in refused.output, refused.output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run.json", "dataset.json"} <= {path.name for path in files} and stored(tmp_path / "answers")
    assert [path for path in files if key.encode() in path.read_bytes()] == []
    assert key not in said.output + retried.output + refused.output


def test_a_server_that_has_gone(convert: list[str], tmp_path: Path) -> None:
    """Is said, and the dataset stays as it was."""
    with StubServer(stubborn) as server:
        assert pipeline(*convert, "--engine", server.url, "--out", tmp_path / "out").code == 0
        before = contents(tmp_path / "out")
    ran = pipeline("retry", tmp_path / "out", "--ray", "off")
    assert ran.code == 2 and "--engine: no server answers" in ran.output, ran.output
    assert "Traceback" not in ran.output
    assert_same(tmp_path / "out", before)


def test_what_run_json_says(convert: list[str], tmp_path: Path) -> None:
    """The figures of the last run, which only a retry may differ in."""
    with StubServer(stubborn) as server:
        ran = pipeline(*convert, "--engine", server.url, "--out", tmp_path / "out")
    teacher = json.loads((tmp_path / "out/run.json").read_text())["teacher"]
    # Eight questions in vain, four times each; sixteen are answered at once.
    assert (teacher["accepted"], teacher["rejected"], teacher["retried"]) == (16, 8, 24)
    assert teacher["asked"] == 16 + 32 and teacher["from_store"] == 0
    assert teacher["cached_share"] == pytest.approx(0.5, abs=0.01)
    assert teacher["prompt_tokens"] / 24 == pytest.approx(teacher["prompt_tokens_per_conversation"], abs=0.1)
    assert teacher["output_tokens"] / 24 == pytest.approx(teacher["output_tokens_per_conversation"], abs=0.1)
    assert 0 < teacher["engine_occupancy"] <= 1 and teacher["gpu_seconds_per_1000_conversations"] is None
    for figure in ("16  answers accepted, 24 asked again", "prompt tokens a conversation, 50% from the prefix cache",
                   "output tokens a conversation", "engine occupancy"):  # fmt: skip
        assert figure in ran.output
