"""An engine without a model: answers come from a function or a file. For tests, and for prompts tried by hand.

A script is a JSON Lines file. The first line that fits a request answers it::

    {"contains": "Segment 3", "text": "{\\"after\\": [1, 2]}"}
    {"fault": "lost", "times": 1}
    {"text": "{}", "finish_reason": "stop"}

``contains``  text that the last message must hold; without it, a line fits every request
``text``      the answer; for the fault ``refused``, the reason
``finish_reason``  ``stop`` unless given
``times``     how often the line may be used; for ever unless given. ``1`` on every line answers in order
``fault``     instead of an answer: ``lost`` (the engine dies), ``refused``, or ``hang`` (no answer ever comes)

Uses are counted per engine, so with several workers a script whose answers must not depend on who asks first says
``contains``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec

from pipeline.engines.protocol import Answer, EngineLost, Model, Request, RequestRefused
from pipeline.errors import UserError

#: Answers a request; a plain text means that the model stopped of its own. May raise what an engine may raise.
Respond = Callable[[Request], Answer | str | Awaitable[Answer | str]]


class ScriptedEngine:
    """Asks a function. After :class:`EngineLost` it answers nothing until it is started again, as a real one would."""

    def __init__(
        self,
        respond: Respond | Script,
        *,
        name: str = "scripted",
        revision: str | None = None,
        context: int | None = None,
    ) -> None:
        self._respond: Respond = respond
        if revision is None and isinstance(respond, Script):
            revision = respond.revision
        self._model = Model(name, revision, context)
        self._started = False

    #: There is never any that it could know of.
    trouble = ""

    async def start(self) -> Model:
        """Ready at once."""
        self._started = True
        return self._model

    async def ask(self, request: Request) -> Answer:
        """What the function says. Tokens are counted as words."""
        if not self._started:
            raise EngineLost("the scripted engine is not started")
        await asyncio.sleep(0)  # others get their turn, as with a real engine
        try:
            said = self._respond(request)
            if inspect.isawaitable(said):
                said = await said
        except EngineLost:
            self._started = False
            raise
        if isinstance(said, Answer):
            return said
        prompt = len(request.tokens) or sum(len(message.content.split()) for message in request.messages)
        return Answer(said, "stop", prompt_tokens=prompt, output_tokens=len(said.split()))

    async def close(self) -> None:
        """Nothing to let go of."""
        self._started = False


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str = ""
    contains: str | None = None
    finish_reason: str = "stop"
    times: int | None = None
    fault: Literal["lost", "refused", "hang"] | None = None


class Script:
    """The lines of a script, and how often each was used."""

    def __init__(self, lines: list[_Line], source: str, revision: str | None = None) -> None:
        self._lines = lines
        self._left = [line.times for line in lines]
        self._source = source
        self.revision = revision

    async def __call__(self, request: Request) -> Answer | str:
        """The answer of the first line that fits. Raises :class:`UserError` where none does."""
        asked = request.messages[-1].content if request.messages else ""
        for number, line in enumerate(self._lines):
            left = self._left[number]
            if left == 0 or (line.contains is not None and line.contains not in asked):
                continue
            if left is not None:
                self._left[number] = left - 1
            return await _play(line)
        raise UserError(f"{self._source}: no line is left for the request that ends in {asked[-80:]!r}; add one")


async def _play(line: _Line) -> Answer:
    match line.fault:
        case "lost":
            raise EngineLost(line.text or "the script says so")
        case "refused":
            raise RequestRefused(line.text or "the script says so")
        case "hang":
            await asyncio.Event().wait()
    return Answer(line.text, line.finish_reason, output_tokens=len(line.text.split()))


def read_script(path: Path) -> Script:
    """Read a script file. Raises :class:`UserError` naming file and line."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"--engine scripted:{path}: cannot be read ({error.strerror})") from error
    lines = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            lines.append(msgspec.json.decode(line, type=_Line))
        except msgspec.DecodeError as error:
            raise UserError(
                f"{path}, line {number}: {error}; a line looks like "
                '{"contains": "…", "text": "…", "finish_reason": "stop", "times": 1}'
            ) from error
    if not lines:
        raise UserError(f"{path}: no answers in it; write one JSON object a line")
    return Script(lines, str(path), sha256(raw).hexdigest()[:16])
