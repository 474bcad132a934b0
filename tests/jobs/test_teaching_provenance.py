"""What a teacher's plans came from, and what is asked again when something changes: only what must be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import assert_same, contents, pipeline
from stub_server import Body, StubServer
from taught import answer, is_probe, plan_lines, quarantine_lines, stored, write_turns, wrong

from pipeline.resources import folder
from pipeline.teach.planners.answers import one_line

_COUNT = 12


class Server(StubServer):
    """Counts the questions since it was last asked for their number."""

    _counted = 0

    def questions(self) -> list[Body]:
        """What was asked since, but for what only tries the engine out."""
        since, self._counted = self._counted, len(self.bodies)
        return [body for body in self.bodies[since:] if not is_probe(body)]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(answer) as made:
        yield made


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Conversations of two turns."""
    return write_turns(tmp_path / "chats.jsonl", _COUNT, turns=2)


def _convert(corpus: Path, out: Path, server: StubServer, recipe: str | Path, *more: str | Path) -> str:
    ran = pipeline("convert", "--input", corpus, "--recipe", recipe, "--engine", server.url, "--out", out,
                   "--answers", corpus.with_name("answers"), "--ray", "off", *more)  # fmt: skip
    assert ran.code == 0, ran.output
    return ran.output


def _prompt(folder_: Path, name: str, **changes: str) -> Path:
    """A copy of a shipped prompt with something added to some templates."""
    copy = folder_ / f"{name}-{len(changes)}"
    copy.mkdir()
    for path in (folder("prompts") / name).glob("*.jinja"):
        (copy / path.name).write_text(path.read_text() + changes.get(path.stem.replace("-", "_"), ""))
    return copy


def test_plans_say_what_they_came_from(corpus: Path, tmp_path: Path) -> None:
    with Server(wrong(0.3)) as server:
        _convert(corpus, tmp_path / "out", server, "blind", "--set", "answer=align", "--set", "teacher.seed=7")
    lines = {line["key"]: line for line in stored(tmp_path / "answers")}
    manifest = json.loads((tmp_path / "out/dataset.json").read_text())
    assert manifest["teacher"] == {"model": "stub", "revision": None}
    made = plan_lines(tmp_path / "out")
    assert len(made) + len(quarantine_lines(tmp_path / "out")) == _COUNT and len(made) > 3
    prompts = set()
    for plan in made:
        teacher = plan["teacher"]
        prompts.add(teacher.pop("prompt"))
        answers = teacher.pop("answers")
        assert teacher == {
            "planner": "blind", "model": "stub", "revision": None, "temperature": 0.7, "top_p": 1.0, "seed": 7
        }  # fmt: skip
        assert len(answers) >= 4 and all(given["finish_reason"] == "stop" for given in answers)
        used = [lines[given["key"]] for given in answers]
        assert all(line["model"] == "stub" and line["answer"]["finish_reason"] == "stop" for line in used)
        # The plan's own texts are those of the answers that it names, in that order.
        thoughts = [thought for line in used for thought in json.loads(line["answer"]["text"]).get("thoughts", ())]
        said = [segment["text"] for segment in plan["segments"] if "text" in segment]
        assert said == [line for line in map(one_line, thoughts) if line]
    [prompt] = prompts
    assert len(prompt) == 64 and int(prompt, 16)


def test_quarantine_keeps_what_was_said(corpus: Path, tmp_path: Path) -> None:
    with Server(
        lambda body: "It is blue." if is_probe(body) and "structured_outputs" not in body else wrong(0.8)(body)
    ) as server:
        _convert(corpus, tmp_path / "out", server, "align")
    said = {line["answer"]["text"] for line in stored(tmp_path / "answers")}
    rejected = quarantine_lines(tmp_path / "out")
    assert rejected
    for line in rejected:
        assert line["reason"] == "teacher_invalid" and "none of 4 answers was valid; the last one: " in line["message"]
        assert len(line["answers"]) == 4 and set(line["answers"]) <= said


def test_one_template_asks_again_only_what_used_it(corpus: Path, server: Server, tmp_path: Path) -> None:
    options = ("--set", "answer=align", "--set", "teacher.temperature=0")
    _convert(corpus, tmp_path / "first", server, "blind", *options)
    asked = server.questions()
    aligned = [body for body in asked if "You judge how early" in body["messages"][0]["content"]]
    assert len(aligned) == 2 * _COUNT < len(asked)

    reading = _prompt(tmp_path, "blind", read="\nThink.")
    output = _convert(corpus, tmp_path / "second", server, "blind", *options, "--set", f"prompt={reading}")
    again = server.questions()
    assert again and all("inner voice" in body["messages"][0]["content"] for body in again)
    assert f"{2 * _COUNT}  asked for at no cost" in output

    _convert(corpus, tmp_path / "third", server, "align")  # without thoughts: the same questions as blind's second half
    again = server.questions()
    assert len(again) == _COUNT and all(" think: " in body["messages"][1]["content"] for body in again)


def test_the_same_out_is_refused_naming_what_differs(corpus: Path, server: Server, tmp_path: Path) -> None:
    _convert(corpus, tmp_path / "out", server, "align")
    server.questions()
    before = contents(tmp_path / "out")
    same = ("convert", "--input", corpus, "--recipe", "align", "--out", tmp_path / "out", "--ray", "off")
    for options, difference in (
        (("--set", f"prompt={_prompt(tmp_path, 'align', turn='?')}"), "recipe.prompt.templates.turn.jinja: "),
        (("--set", "teacher.temperature=0.5"), "recipe.teacher.temperature: 0.0 there, 0.5 now"),
        (("--set", "max_segments=3"), "recipe.options.max_segments: 64 there, 3 now"),
    ):
        ran = pipeline(*same, "--engine", server.url, *options)
        assert ran.code == 2 and difference in ran.output and "--fresh" in ran.output, ran.output
    with StubServer(answer, models=["other"]) as other:
        ran = pipeline(*same, "--engine", other.url)
    assert ran.code == 2 and 'teacher.model: "stub" there, "other" now' in ran.output, ran.output
    with StubServer(answer) as moved:  # another address is the same model
        ran = pipeline(*same, "--engine", moved.url)
        assert ran.code == 0 and "it was finished already" in ran.output
        assert moved.bodies == []
    assert_same(tmp_path / "out", before)
    assert server.questions() == []


def test_fresh_keeps_the_answers(corpus: Path, server: Server, tmp_path: Path) -> None:
    _convert(corpus, tmp_path / "out", server, "blind")
    before, asked = contents(tmp_path / "out"), server.questions()
    assert asked
    output = _convert(corpus, tmp_path / "out", server, "blind", "--fresh")
    assert server.questions() == [] and f"{len(asked)}  asked for at no cost" in output
    assert_same(tmp_path / "out", before)


def test_plans_ask_nothing(corpus: Path, server: Server, tmp_path: Path) -> None:
    """Another tokenizer, other options of the schedule, another layout: the stored plans, scheduled again."""
    _convert(corpus, tmp_path / "out", server, "align")
    bodies = len(server.bodies)
    tokenizer = tmp_path / "other.json"
    document = json.loads((tmp_path / "out/tokenizer.json").read_text())
    del document["model"]["merges"][len(document["model"]["merges"]) // 4 :]
    tokenizer.write_text(json.dumps(document))
    layout = tmp_path / "other.yaml"
    layout.write_text(
        (folder("schemas") / "layouts/chat-think-3.yaml").read_text().replace("name: chat-think-3", "name: other")
    )
    for number, options in enumerate(
        (("--tokenizer", tokenizer), ("--max-rows", "40", "--long", "window"), ("--set", f"layout={layout}"))
    ):
        again = tmp_path / f"again-{number}"
        ran = pipeline(
            "convert", "--input", corpus, "--plans", tmp_path / "out", "--out", again, "--ray", "off", *options
        )
        assert ran.code == 0, ran.output
        ran = pipeline("validate", again, "--strict")
        assert ran.code == 0, ran.output
        assert contents(again)["data/part-00000.parquet"] != contents(tmp_path / "out")["data/part-00000.parquet"]
        origins = {plan["id"]: plan["teacher"] for plan in plan_lines(tmp_path / "out")}
        made = {plan["id"]: plan["teacher"] for plan in plan_lines(again)}
        assert made and made.items() <= origins.items()
        assert json.loads((again / "dataset.json").read_text())["teacher"]["model"] == "stub"
    assert len(server.bodies) == bodies


def test_damaged_answers_are_told_of_and_asked_again(corpus: Path, server: Server, tmp_path: Path) -> None:
    """One line is cut, one has another answer than it had: the user hears of both, and the dataset is what it was."""
    _convert(corpus, tmp_path / "out", server, "align")
    before = contents(tmp_path / "out")
    server.questions()
    [path] = (tmp_path / "answers").glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][:40] + b"\n"
    lines[5] = lines[5].replace(b'"finish_reason":"stop"', b'"finish_reason":"stop "')
    path.write_bytes(b"".join(lines))
    output = _convert(corpus, tmp_path / "again", server, "align")
    assert len(server.questions()) == 2
    assert output.count("an answer that was kept cannot be used, and is asked for again if needed") == 2
    assert f"{path}: line 4: not an answer" in output and f"{path}: line 6: it has been changed" in output
    assert f"2  answers in {tmp_path / 'answers'} are damaged and were not used" in output
    teacher = json.loads((tmp_path / "again/run.json").read_text())["teacher"]
    assert teacher["damaged_answers"] == 2 and len(teacher["damaged"]) == 2
    assert_same(tmp_path / "again", before)


def test_a_server_s_other_checkpoint_is_asked_again(corpus: Path, server: Server, tmp_path: Path) -> None:
    """Under the same name; nobody but the user can know. The servers are not told."""
    for number, revision in enumerate(["0123456", "0123456", "v2"]):
        out = tmp_path / f"out-{number}"
        _convert(corpus, out, server, "align", "--engine-arg", f"revision={revision}")
        asked = server.questions()
        assert len(asked) == (0 if number == 1 else 2 * _COUNT)
        assert not any("revision" in body for body in asked)
        assert json.loads((out / "dataset.json").read_text())["teacher"] == {"model": "stub", "revision": revision}
        assert {plan["teacher"]["revision"] for plan in plan_lines(out)} == {revision}
    lines = stored(tmp_path / "answers")
    assert len({line["key"] for line in lines}) == len(lines) == 4 * _COUNT
    assert {line["revision"] for line in lines} == {"0123456", "v2"}
