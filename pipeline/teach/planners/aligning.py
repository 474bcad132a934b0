"""One question to the teacher: after which input segment could each of these output segments have been written?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.engines.protocol import Constraint, Message
from pipeline.read.conversation import Part
from pipeline.teach.causal import shown_parts
from pipeline.teach.data import Plain
from pipeline.teach.planners.answers import read_json
from pipeline.teach.prompts import Prompt
from pipeline.teach.protocol import Ask


class Piece(NamedTuple):
    """A piece of a part."""

    role: str
    text: str


class Written(NamedTuple):
    """Something that the model wrote in the turn: pieces that are asked about, or one that is only shown."""

    pieces: Sequence[Piece]
    asked: bool


class Aligner:
    """Asks, as often as one call's ``max_segments`` make it necessary. The answers are numbers, never text."""

    def __init__(self, prompt: Prompt, system: str, turn: str, max_segments: int) -> None:
        """``system`` and ``turn`` are templates of ``prompt``."""
        prompt.check(system)
        prompt.check(turn, "earlier", "inputs", "outputs", "count")
        self._prompt = prompt
        self._system = Message("system", prompt.render(system))
        self._turn = turn
        self._max_segments = max_segments

    async def __call__(
        self, ask: Ask, earlier: Sequence[Part], inputs: Sequence[Piece], written: Sequence[Written]
    ) -> list[int]:
        """For every piece asked about, in order, the last of ``inputs`` (from 1) that it needs, 0 for none.

        ``earlier`` is the conversation before this turn. Raises what ``ask`` raises.
        """
        needs: list[int] = []
        shown: list[dict[str, Any]] = []
        count = 0
        for piece, asked in [(piece, entry.asked) for entry in written for piece in entry.pieces]:
            if asked and count == self._max_segments:
                needs += await self._ask(ask, earlier, inputs, shown, count)
                shown = [entry | {"number": 0} for entry in shown]
                count = 0
            count += asked
            shown.append({"role": Plain(piece.role), "text": piece.text, "number": count if asked else 0})
        if count:
            needs += await self._ask(ask, earlier, inputs, shown, count)
        return needs

    async def _ask(
        self,
        ask: Ask,
        earlier: Sequence[Part],
        inputs: Sequence[Piece],
        outputs: Sequence[dict[str, Any]],
        count: int,
    ) -> list[int]:
        numbered = [
            {"role": Plain(piece.role), "text": piece.text, "number": number} for number, piece in enumerate(inputs, 1)
        ]
        prompt = self._prompt.render(
            self._turn, earlier=shown_parts(earlier), inputs=numbered, outputs=outputs, count=count
        )
        longest = dict.fromkeys(_keys(count), len(inputs))

        def parse(text: str) -> list[int]:
            return _parse(text, count, len(inputs))

        needs, _ = await ask(
            [self._system, Message("user", prompt)],
            Constraint("json", answer_schema(count, len(inputs))),
            parse,
            # A token is at least a byte; with the blanks that an engine may put after commas and colons, and the end.
            max_tokens=len(json.dumps(longest)) + 8,
            example=json.dumps(longest, separators=(",", ":")),
        )
        return needs


def answer_schema(outputs: int, inputs: int) -> dict[str, Any]:
    """Keys "1" to ``outputs``, in that order, all of them, each a number from 0 to ``inputs``; nothing else."""
    need = {"$ref": "#/$defs/need"}
    return {
        "type": "object",
        "properties": dict.fromkeys(_keys(outputs), need),
        "required": _keys(outputs),
        "additionalProperties": False,
        # Said once, and as a list: every engine knows lists of values, and one rule serves all keys.
        "$defs": {"need": {"enum": list(range(inputs + 1))}},
    }


def _parse(text: str, outputs: int, inputs: int) -> list[int]:
    needs = read_json(text, dict[str, int])
    keys = _keys(outputs)
    lacking = [key for key in keys if key not in needs]
    if lacking:
        raise ValueError(f'the key "{lacking[0]}" is missing; the keys are "1" to "{outputs}"')
    if len(needs) > outputs:
        unknown = next(key for key in needs if key not in set(keys))
        raise ValueError(f'there is no output segment "{unknown[:20]}"; the keys are "1" to "{outputs}"')
    for key in keys:
        if not 0 <= needs[key] <= inputs:
            raise ValueError(f'"{key}" is {needs[key]}, but there are input segments 1 to {inputs}, and 0 for none')
    return [needs[key] for key in keys]


def _keys(count: int) -> list[str]:
    return [str(number) for number in range(1, count + 1)]
