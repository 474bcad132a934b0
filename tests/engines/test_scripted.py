"""The engine without a model, and its file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pipeline.engines.build import build_engine
from pipeline.engines.protocol import Answer, EngineLost, Message, Request, RequestRefused
from pipeline.engines.scripted import ScriptedEngine, read_script
from pipeline.engines.spec import parse_spec
from pipeline.errors import UserError


def _ask(text: str) -> Request:
    return Request((Message("system", "s"), Message("user", text)))


def _write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_first_line_that_fits_answers(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        '{"contains": "cat", "text": "meow"}',
        '{"contains": "dog", "text": "wo", "finish_reason": "length", "times": 1}',
        '{"contains": "dog", "text": "woof"}',
        "",
        '{"text": "?"}',
    )

    async def run() -> list[tuple[str, str]]:
        spec = parse_spec(f"scripted:{path}")
        assert spec is not None
        engine = build_engine(spec)
        model = await engine.start()
        assert model.name == "scripted" and model.revision
        asked = ["a dog", "a cat", "a dog", "a cow", "cat"]
        return [(answer.text, answer.finish_reason) for text in asked if (answer := await engine.ask(_ask(text)))]

    assert asyncio.run(run()) == [("wo", "length"), ("meow", "stop"), ("woof", "stop"), ("?", "stop"), ("meow", "stop")]


def test_faults_are_those_of_a_real_engine(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        '{"contains": "a", "fault": "lost", "times": 1}',
        '{"contains": "b", "fault": "refused", "text": "too long"}',
        '{"contains": "c", "fault": "hang"}',
        '{"text": "fine"}',
    )

    async def run() -> None:
        engine = ScriptedEngine(read_script(path))
        with pytest.raises(EngineLost):
            await engine.ask(_ask("too early"))
        await engine.start()
        with pytest.raises(EngineLost):
            await engine.ask(_ask("a"))
        with pytest.raises(EngineLost):
            await engine.ask(_ask("d"))  # dead until it is started again
        await engine.start()
        assert (await engine.ask(_ask("a"))).text == "fine"
        with pytest.raises(RequestRefused, match="too long"):
            await engine.ask(_ask("b"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.ask(_ask("c")), 0.05)
        await engine.close()
        await engine.close()

    asyncio.run(run())


def test_a_request_that_no_line_fits_stops_the_run(tmp_path: Path) -> None:
    engine = ScriptedEngine(read_script(_write(tmp_path, '{"contains": "cat", "text": "meow"}')))

    async def run() -> None:
        await engine.start()
        await engine.ask(_ask("dog"))

    with pytest.raises(UserError, match=r"answers.jsonl: no line is left .*'dog'"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a"}\n{"txt": "b"}', "line 2: Object contains unknown field `txt`"),
        ("{", "line 1"),
        ('{"fault": "explode"}', "line 1: Invalid enum value"),
        ("", "no answers in it"),
    ],
)
def test_a_wrong_script_is_named_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        read_script(_write(tmp_path, line))
    assert said in str(error.value)


def test_functions_answer_too_whether_they_wait_or_not() -> None:
    async def slowly(request: Request) -> Answer:
        await asyncio.sleep(0.01)
        return Answer(request.messages[-1].content.upper(), "stop", output_tokens=1)

    async def run() -> list[Answer]:
        answers = []
        for respond in (slowly, lambda request: f"{len(request.messages)} messages"):
            engine = ScriptedEngine(respond)
            await engine.start()
            answers += await asyncio.gather(*(engine.ask(_ask(text)) for text in ("a", "b c")))
        return answers

    answers = asyncio.run(run())
    assert [answer.text for answer in answers] == ["A", "B C", "2 messages", "2 messages"]
    assert [answer.prompt_tokens for answer in answers] == [0, 0, 2, 3]
