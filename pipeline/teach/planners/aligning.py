"""One question to the teacher: after which input segment could each of these output segments have been written?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
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
    """Asks, as often as one call's ``max_segments`` make it necessary. The answers are numbers, never text.

    ``max_inputs``: where a turn has more input pieces, neighbours share a number, as few as possible.
    """

    def __init__(self, prompt: Prompt, system: str, turn: str, max_segments: int, max_inputs: int) -> None:
        """``system`` and ``turn`` are templates of ``prompt``."""
        prompt.check(system)
        prompt.check(turn, "earlier", "inputs", "outputs", "count")
        self._prompt = prompt
        self._system = Message("system", prompt.render(system))
        self._turn = turn
        self._max_segments = max_segments
        self._max_inputs = max_inputs
        #: The largest ``max_tokens`` of a call.
        self.longest = _most_tokens(_longest_answer(max_segments, max_inputs))

    async def __call__(
        self, ask: Ask, earlier: Sequence[Part], inputs: Sequence[Piece], written: Sequence[Written]
    ) -> list[int]:
        """For every piece asked about, in order, the last of ``inputs`` (from 1) that it needs, 0 for none.

        ``earlier`` is the conversation before this turn. Raises what ``ask`` raises.
        """
        groups = _groups(inputs, self._max_inputs)
        numbered = [
            {
                "role": Plain(inputs[group.start].role),
                "text": "".join(piece.text for piece in inputs[group.start : group.stop]),
                "number": number,
            }
            for number, group in enumerate(groups, 1)
        ]
        needs: list[int] = []
        shown: list[dict[str, Any]] = []
        count = 0
        for piece, asked in [(piece, entry.asked) for entry in written for piece in entry.pieces]:
            if asked and count == self._max_segments:
                needs += await self._ask(ask, earlier, numbered, shown, count)
                shown = [entry | {"number": 0} for entry in shown]
                count = 0
            count += asked
            shown.append({"role": Plain(piece.role), "text": piece.text, "number": count if asked else 0})
        if count:
            needs += await self._ask(ask, earlier, numbered, shown, count)
        return [groups[need - 1].stop if need else 0 for need in needs]

    async def _ask(
        self,
        ask: Ask,
        earlier: Sequence[Part],
        inputs: Sequence[dict[str, Any]],
        outputs: Sequence[dict[str, Any]],
        count: int,
    ) -> list[int]:
        prompt = self._prompt.render(
            self._turn, earlier=shown_parts(earlier), inputs=inputs, outputs=outputs, count=count
        )
        longest = _longest_answer(count, len(inputs))

        def parse(text: str) -> list[int]:
            return _parse(text, count, len(inputs))

        needs, _ = await ask(
            [self._system, Message("user", prompt)],
            Constraint("json", answer_schema(count, len(inputs))),
            parse,
            max_tokens=_most_tokens(longest),
            example=json.dumps(longest, separators=(",", ":")),
        )
        return needs


def _longest_answer(outputs: int, inputs: int) -> dict[str, int]:
    return dict.fromkeys(_keys(outputs), inputs)


def _most_tokens(answer: dict[str, int]) -> int:
    """A token is at least a byte; with the blanks that an engine may put after commas and colons, and the end."""
    return len(json.dumps(answer)) + 8


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


def _groups(inputs: Sequence[Piece], most: int) -> list[range]:
    """Runs of pieces that share a number: of one role, of equal length but for the last of a role, as a rule ``most``."""
    roles = [piece.role for piece in inputs]
    changes = [i for i in range(1, len(roles)) if roles[i] != roles[i - 1]]
    bounds = [0, *changes, len(inputs)]
    size = 1 if len(inputs) <= most else -(-len(inputs) // max(most - len(changes), 1))
    return [
        range(first, min(first + size, end)) for begin, end in pairwise(bounds) for first in range(begin, end, size)
    ]


def _keys(count: int) -> list[str]:
    return [str(number) for number in range(1, count + 1)]
