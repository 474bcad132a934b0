"""``pipeline retry`` asks again where a teacher has failed, and what it makes can be replayed like anything else."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from running import assert_same, contents, pipeline
from stub_server import Body, Fault, StubServer
from taught import answer, is_probe, quarantine_lines, stored, write_turns

from jobs.teacher import teacher_setup
from jobs.teaching import Teacher, TeacherSetup
from pipeline.engines.protocol import Model
from pipeline.engines.spec import EngineSpec, parse_spec
from pipeline.errors import UserError
from pipeline.look.teacher import PreviewTeacher
from pipeline.recipe import Recipe, engine_for, load_recipe
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


def test_refusals_are_replayed_and_asked_again_by_a_retry(convert: list[str], tmp_path: Path) -> None:
    """What a server will not answer decides what the dataset is, so it is kept like an answer."""
    patience = 1

    def faults(body: Body, _seen: int) -> Fault | None:
        asked = str(body["messages"][1]["content"]) if len(body["messages"]) > 1 else ""
        if " have 4 boxes" in asked and _ATTEMPTS[body["seed"]] // TeacherSettings().attempts < patience:
            return Fault("status", status=400, message="this prompt is too long for me")
        return None

    with StubServer(answer, faults) as server:
        ran = pipeline(*convert, "--engine", server.url, "--out", tmp_path / "out")
        assert ran.code == 0 and "1 teacher_refused" in ran.output, ran.output
        [line] = quarantine_lines(tmp_path / "out")
        [said] = line["answers"]
        assert "too long for me" in said and line["message"] == f"{said} (kept; `pipeline retry` asks again)"
        assert_same(tmp_path / "out", _replayed(server, convert, tmp_path / "replayed"))

        patience = 2  # the first retry is refused too, the second one is answered
        assert "Nothing was recovered" in pipeline("retry", tmp_path / "out", "--ray", "off").output
        assert len(quarantine_lines(tmp_path / "out")[0]["answers"]) == 2
        assert_same(tmp_path / "out", _replayed(server, convert, tmp_path / "replayed-2"))
        ran = pipeline("retry", tmp_path / "out", "--ray", "off")
        assert "Recovered 1 of 1 in quarantine." in ran.output, ran.output
        assert_same(tmp_path / "out", _replayed(server, convert, tmp_path / "replayed-3"))
    ran = pipeline("validate", tmp_path / "out", "--strict")
    assert ran.code == 0, ran.output


def test_a_retry_of_what_has_moved(convert: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server to another port, the answers to another folder: nothing that was paid for is asked again."""
    monkeypatch.chdir(tmp_path)
    convert[convert.index("--answers") + 1] = "answers"
    with StubServer(stubborn) as server:
        assert pipeline(*convert, "--engine", server.url, "--concurrency", "3", "--out", tmp_path / "out").code == 0
    known = json.loads((tmp_path / "out/run.json").read_text())
    assert known["answers"] == str(tmp_path / "answers")
    paid = {line["key"] for line in stored(tmp_path / "answers")}
    monkeypatch.chdir("/")
    (tmp_path / "answers").rename(tmp_path / "moved")
    before = contents(tmp_path / "out")
    with StubServer(stubborn) as server:
        ran = pipeline("retry", tmp_path / "out", "--ray", "off", "--engine", server.url)
        assert ran.code == 2 and "the answers of the last run are no longer there; say with --answers" in ran.output
        assert not server.bodies and not (tmp_path / "answers").exists()
        assert_same(tmp_path / "out", before)
        ran = pipeline(
            "retry", tmp_path / "out", "--ray", "off", "--engine", server.url, "--answers", tmp_path / "moved"
        )
        assert ran.code == 0 and "Recovered 4 of 8 in quarantine." in ran.output, ran.output
        assert {body["seed"] for body in server.bodies if not is_probe(body)} == {
            TeacherSettings().sampling(attempt, 1).seed for attempt in range(4, 8)
        }
        about = json.loads((tmp_path / "out/run.json").read_text())
        assert about["engine"] == known["engine"] | {"where": [server.url]}
        assert about["answers"] == str(tmp_path / "moved")
        # The next one needs to be told nothing.
        ran = pipeline("retry", tmp_path / "out", "--ray", "off")
        assert ran.code == 0 and "Recovered 2 of 4" in ran.output, ran.output
    lines = [line["key"] for line in stored(tmp_path / "moved")]
    assert len(set(lines)) == len(lines) and paid < set(lines)
    ran = pipeline("retry", tmp_path / "out", "--model", "x")
    assert ran.code == 2 and "--model: there is no engine that it could be for; add --engine" in ran.output


def test_a_run_that_could_do_nothing_claims_no_directory(convert: list[str], tmp_path: Path) -> None:
    """What its error advises is another command for the same ``--out``."""
    out = tmp_path / "out"
    with StubServer(answer, lambda body, _: Fault("status", status=400, message="no system messages")) as server:
        ran = pipeline(*convert, "--engine", server.url, "--out", out)
        assert ran.code == 2 and "no system messages" in ran.output and not list(out.rglob("*.*")), ran.output
    with StubServer(answer) as server:
        ran = pipeline(*convert, "--engine", server.url, "--out", out, "--set", "teacher.seed=3")
        assert ran.code == 0, ran.output


def test_the_figures_of_a_run_that_goes_on(convert: list[str], tmp_path: Path) -> None:
    """Are those of the conversations that it has planned itself."""
    with StubServer(answer) as server:
        assert pipeline(*convert, "--engine", server.url, "--out", tmp_path / "out").code == 0
        (tmp_path / "out/data/part-00002.parquet").unlink()
        again = [*convert[:-1], str(tmp_path / "others")]
        ran = pipeline(*again, "--engine", server.url, "--out", tmp_path / "out")
    assert ran.code == 0 and "3 of 4 shards were there already" in ran.output, ran.output
    teacher = json.loads((tmp_path / "out/run.json").read_text())["teacher"]
    assert teacher["asked"] == 6
    assert teacher["prompt_tokens_per_conversation"] == round(teacher["prompt_tokens"] / 6, 1)
    assert teacher["output_tokens_per_conversation"] == round(teacher["output_tokens"] / 6, 1)


def test_a_server_that_asks_for_time_is_not_lost(convert: list[str], tmp_path: Path) -> None:
    """However long the pause is, next to what an answer may take."""
    busy = Fault("status", status=429, retry_after="2")

    def faults(body: Body, seen: int) -> Fault | None:
        return busy if seen == 0 and " have 7 boxes" in str(body["messages"]) else None

    with StubServer(answer, faults) as server:
        ran = pipeline(*convert, "--engine", server.url, "--out", tmp_path / "out", "--engine-timeout", "0.5")
    assert ran.code == 0, ran.output
    teacher = json.loads((tmp_path / "out/run.json").read_text())["teacher"]
    assert teacher["accepted"] == 24 and teacher["engine_restarts"] == 0


@pytest.mark.parametrize("broken", ["store", "engine"])
def test_a_teacher_that_cannot_be_had_leaves_nothing(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread, no loop, no open file."""

    def fail(*_: object, **__: object) -> None:
        raise UserError("cannot be had")

    monkeypatch.setattr(
        "pipeline.teach.answers.AnswerStore._catch_up" if broken == "store" else "pipeline.teach.build.build_engine",
        fail,
    )
    (tmp_path / "script").write_text('{"text": "{}"}\n')
    spec = EngineSpec("scripted", (str(tmp_path / "script"),))
    threads, files = set(threading.enumerate()), set(Path("/proc/self/fd").iterdir())
    with pytest.raises(UserError, match="cannot be had"):
        Teacher(TeacherSetup(spec, Model("scripted"), str(tmp_path / "answers")), load_recipe("align"))
    assert (set(threading.enumerate()), set(Path("/proc/self/fd").iterdir())) == (threads, files)


def test_a_teacher_that_is_closed_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "script").write_text('{"text": "{}"}\n')
    threads, files = set(threading.enumerate()), set(Path("/proc/self/fd").iterdir())
    spec = EngineSpec("scripted", (str(tmp_path / "script"),))
    teacher = Teacher(TeacherSetup(spec, Model("scripted"), str(tmp_path / "answers")), load_recipe("align"))
    teacher.close()
    assert (set(threading.enumerate()), set(Path("/proc/self/fd").iterdir())) == (threads, files)
    with pytest.raises(UserError, match="stopped"):
        teacher.plan(0, "chats.jsonl", "openai", [], 0)


def test_a_preview_that_cannot_be_had_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UserError("cannot be had")

    (tmp_path / "script").write_text('{"text": "{}"}\n')
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pipeline.teach.build.probe_for", fail)  # the last step, with all others behind it
    threads, files = set(threading.enumerate()), set(Path("/proc/self/fd").iterdir())
    with pytest.raises(UserError, match="cannot be had"):
        PreviewTeacher(load_recipe("align"), EngineSpec("scripted", (str(tmp_path / "script"),)), None)
    assert (set(threading.enumerate()), set(Path("/proc/self/fd").iterdir())) == (threads, files)
    assert [path.name for path in tmp_path.iterdir()] == ["script"]


def test_vllm_that_is_not_installed_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.teacher.find_spec", lambda _: None)
    with pytest.raises(UserError, match="--engine vllm: vllm is not installed here"):
        teacher_setup(load_recipe("align"), parse_spec("vllm", "m"), None, str(tmp_path / "out"), 1, here=True)


def test_arguments_of_a_recipe(tmp_path: Path) -> None:
    """Are vLLM's: checked like those of the command line, which win, and nothing to a server."""

    def recipe(argument: str) -> Recipe:
        path = tmp_path / "own.yaml"
        path.write_text(f"name: own\nlayout: chat-think-3\nplanner: align\nengine: {{{argument}}}\n")
        return load_recipe(str(path))

    given = parse_spec("vllm", "m", ["max_model_len=8"])
    found = engine_for(recipe("tensor_parallel_size: 2, max_model_len: 9"), given, None)
    assert found is not None and found.gpus == 2 and dict(found.args)["max_model_len"] == 8
    with pytest.raises(UserError, match=r"tensor_parallel_size .*two must be a whole number of GPUs"):
        engine_for(recipe("tensor_parallel_size: two"), given, None)
    server = parse_spec("http://h/v1", "m")
    assert engine_for(recipe("tensor_parallel_size: 2"), server, None) == server


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
