"""The questions to the teacher: after which input segment could each of these output segments have been written?

All questions of a conversation are one text that grows: what the call before has shown stands at its beginning, byte for
byte, and what is new is added, so an engine with a prefix cache reads every segment once. Only the line that asks, at the
very end, makes way for the next. Answers are not repeated: no call depends on what was answered to the one before, so
what is asked is the same, and found in the store, whatever that was.

Every list of segments is numbered from 1: an answer's keys stay short, and with two digits on either side it costs at most
eight tokens per output segment in JSON's compact form, also where a vocabulary writes every character by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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


class Line(NamedTuple):
    """A line of a prompt."""

    role: Plain
    text: str
    #: 0: shown, but not asked about.
    number: int


class Aligner:
    """What all conversations share: the templates and the limits.

    ``max_segments``: the most output pieces that one call asks about; a longer turn takes several. ``max_inputs``: where a
    turn has more input pieces, neighbours share a number, as few as possible.
    """

    def __init__(self, prompt: Prompt, prefix: str, max_segments: int, max_inputs: int) -> None:
        """``prefix``: what the names of the templates begin with."""
        self._turn = f"{prefix}turn.jinja"
        self._question = f"{prefix}question.jinja"
        prompt.check(f"{prefix}system.jinja")
        prompt.check(self._turn, "earlier", "inputs", "outputs")
        prompt.check(self._question, "count", "highest")
        self._prompt = prompt
        self.system = Message("system", prompt.render(f"{prefix}system.jinja"))
        self.max_segments = max_segments
        self.max_inputs = max_inputs
        #: The largest ``max_tokens`` of a call.
        self.longest = _most_tokens(_longest_answer(max_segments, max_inputs))

    def show(self, earlier: Sequence[Part], inputs: Sequence[Line], outputs: Sequence[Line]) -> str:
        """Text that is added to a conversation's prompt."""
        lines = [[line._asdict() for line in each] for each in (inputs, outputs)]
        return self._prompt.render(self._turn, earlier=shown_parts(earlier), inputs=lines[0], outputs=lines[1])

    def question(self, count: int, highest: int) -> str:
        """The line that asks."""
        return self._prompt.render(self._question, count=count, highest=highest)


class Alignment:
    """The questions of one conversation, in its order. The answers are numbers, never text."""

    def __init__(self, aligner: Aligner, parts: Sequence[Part], ask: Ask) -> None:
        self._aligner = aligner
        self._parts = parts
        self._teacher = ask
        #: The prompt so far.
        self._shown: list[str] = []
        #: The parts before this one are in it.
        self._end = 0

    async def __call__(self, first: int, end: int, inputs: Sequence[Piece], written: Sequence[Written]) -> list[int]:
        """For every piece asked about, in order, the last of ``inputs`` (from 1) that it needs, 0 for none.

        ``inputs`` and ``written`` are the parts from ``first``, with which a turn begins, up to ``end``. What was said
        before and is not shown yet is shown first. Raises what the teacher raises.
        """
        if not any(entry.asked and entry.pieces for entry in written):
            return []
        groups = _groups(inputs, self._aligner.max_inputs)
        lines = [_line(inputs[group.start : group.stop], number) for number, group in enumerate(groups, 1)]
        earlier = self._parts[self._end : first]
        self._end = end
        needs: list[int] = []
        for outputs in _calls(written, self._aligner.max_segments):
            self._shown.append(self._aligner.show(earlier, lines, outputs))
            needs += await self._ask(max(line.number for line in outputs), len(groups))
            earlier, lines = [], []
        return [groups[need - 1].stop if need else 0 for need in needs]

    async def _ask(self, count: int, highest: int) -> list[int]:
        """What the ``count`` numbered pieces of the last list need: numbers up to ``highest``."""
        prompt = "\n\n".join([*self._shown, self._aligner.question(count, highest)])
        longest = _longest_answer(count, highest)

        def parse(text: str) -> list[int]:
            return _parse(text, count, highest)

        needs, _ = await self._teacher(
            [self._aligner.system, Message("user", prompt)],
            Constraint("json", answer_schema(count, highest)),
            parse,
            max_tokens=_most_tokens(longest),
            example=json.dumps(longest, separators=(",", ":")),
        )
        return needs


def _line(pieces: Sequence[Piece], number: int) -> Line:
    return Line(Plain(pieces[0].role), "".join(piece.text for piece in pieces), number)


def _calls(written: Sequence[Written], most: int) -> Iterator[list[Line]]:
    """The lines that each call adds, at most so many of them asked about; those are numbered from 1."""
    lines: list[Line] = []
    count = 0
    for piece, asked in [(piece, entry.asked) for entry in written for piece in entry.pieces]:
        if asked and count == most:
            yield lines
            lines, count = [], 0
        count += asked
        lines.append(_line([piece], count if asked else 0))
    yield lines


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
