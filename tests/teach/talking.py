"""What the tests of asking share: a store, an engine that is a function, a conversation that asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline.engines.protocol import Message, Request
from pipeline.engines.scripted import Respond, ScriptedEngine
from pipeline.teach.answers import AnswerStore
from pipeline.teach.asking import Asker
from pipeline.teach.dialogue import Dialogue
from pipeline.teach.prompts import RETRY, Prompt
from pipeline.teach.settings import TeacherSettings

Result = TypeVar("Result")

PROMPT = Prompt("test", {"user.jinja": "{{ text }}", RETRY: "Wrong: {{ problem }}"})


def talk(
    folder: Path,
    respond: Respond,
    work: Callable[[Asker], Awaitable[Result]],
    settings: TeacherSettings | None = None,
    **options: Any,
) -> Result:
    """Run ``work`` with an engine that is a function, and with the answers in ``folder``."""
    made = options.pop("engine", None) or ScriptedEngine(respond, name="model", revision="1")

    async def run() -> Result:
        store = AnswerStore(str(folder / "answers"))
        asker = Asker(made, store, settings or TeacherSettings(), **{"pause": 0.0, **options})
        try:
            await asker.start()
            return await work(asker)
        finally:
            await asker.close()
            await store.close()

    return asyncio.run(run())


def number(text: str) -> int:
    """A parser: an answer is a JSON integer below 100."""
    value = json.loads(text)
    if not isinstance(value, int):
        raise ValueError("it is not an integer")
    if value >= 100:
        raise ValueError(f"{value} is not below 100")
    return value


async def ask(dialogue: Dialogue, text: str, max_tokens: int = 8) -> int:
    """One question of a planner."""
    value, _ = await dialogue([Message("user", text)], None, number, max_tokens=max_tokens, example="1")
    return value


def question_of(request: Request) -> str:
    """What was asked first in a request."""
    return request.messages[0].content
