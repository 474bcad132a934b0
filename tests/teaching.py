"""Teachers for tests: an :class:`~pipeline.teach.protocol.Ask` without an engine, and answers that fit a constraint."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec
from hypothesis import strategies as st

from pipeline.engines.protocol import Constraint, Message
from pipeline.grid.schedule import schedule
from pipeline.layout import Layout
from pipeline.plan.edges import streams_for
from pipeline.plan.plan import Segment, check_plan
from pipeline.read.conversation import Part
from pipeline.teach.planners import TEACHERS
from pipeline.teach.prompts import load_prompt


class Call(NamedTuple):
    """One question, and the answer that was given."""

    messages: tuple[Message, ...]
    constraint: Constraint
    max_tokens: int
    example: str
    answer: str

    @property
    def prompt(self) -> str:
        """All text of the question but the system message, which is the same for all."""
        return "\n".join(message.content for message in self.messages[1:])


class Teacher:
    """Answers from a function, and keeps what was asked."""

    def __init__(self, answer: Callable[[Sequence[Message], Constraint], str]) -> None:
        self._answer = answer
        self.calls: list[Call] = []

    async def __call__(
        self,
        messages: Sequence[Message],
        constraint: Constraint | None,
        parse: Callable[[str], Any],
        *,
        max_tokens: int,
        example: str,
    ) -> tuple[Any, str]:
        assert constraint is not None
        parse(example)  # an example is valid, always
        text = self._answer(messages, constraint)
        self.calls.append(Call(tuple(messages), constraint, max_tokens, example, text))
        return parse(text), text


prompt = cache(load_prompt)


def teach(
    planner: str,
    layout: Layout,
    parts: Sequence[Part],
    answer: Callable[[Sequence[Message], Constraint], str],
    /,
    **options: Any,
) -> tuple[list[Segment], list[Call]]:
    """The plan of a conversation, checked as a stored one would be, and the calls that it took."""
    module = TEACHERS[planner]
    teacher = Teacher(answer)
    made = module.Planner(layout, module.Options(**options), prompt(module.PROMPT))
    segments = asyncio.run(made(parts, teacher))
    check_plan(segments, parts, streams_for(layout), layout.written())
    return segments, teacher.calls


def rows(segments: Sequence[Segment], lengths: Sequence[int], layout: Layout) -> list[tuple[int, int]]:
    """First row and the row after the last of every segment."""
    starts = schedule(segments, lengths, layout.written())
    return [(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def lengths_of(segments: Sequence[Segment], parts: Sequence[Part], chance: random.Random) -> list[int]:
    """Made-up token counts; texts that are empty have none, or their end marker."""
    empty = [not (segment.text or (segment.part >= 0 and segment.end > segment.begin)) for segment in segments]
    return [chance.randint(0, 1) if none else chance.choice((1, 2, 3, 50)) for none in empty]


def said(segments: Sequence[Segment], parts: Sequence[Part]) -> list[str]:
    """The text of every part, put together from its segments."""
    texts = ["" for _ in parts]
    for segment in segments:
        if segment.part >= 0:
            texts[segment.part] += parts[segment.part].text[segment.begin : segment.end]
    return texts


def marked(parts: Sequence[Part]) -> list[Part]:
    """The same conversation with other texts: every sentence is known by its mark, and empty texts stay empty."""
    return [
        msgspec.structs.replace(
            part, text=" ".join(f"m{index}x{n}z." for n in range(1 + len(part.text) % 4)) if part.text else ""
        )
        for index, part in enumerate(parts)
    ]


MARK = re.compile(r"m\d+x\d+z")


def of_marks(segments: Sequence[Segment], parts: Sequence[Part]) -> dict[str, int]:
    """The segment that holds each mark."""
    found: dict[str, int] = {}
    for number, segment in enumerate(segments):
        if segment.part >= 0:
            for mark in MARK.findall(parts[segment.part].text[segment.begin : segment.end]):
                assert mark not in found
                found[mark] = number
    return found


def chances() -> st.SearchStrategy[random.Random]:
    """Sources of chance that can be drawn from in bulk at no cost."""
    return st.integers(0, 2**32).map(random.Random)


def valid(chance: random.Random) -> Callable[[Sequence[Message], Constraint], str]:
    """Answers that satisfy the constraint and nothing else, as a model with random weights would give."""

    def answer(messages: Sequence[Message], constraint: Constraint) -> str:
        if constraint.kind == "json":
            return json.dumps(_value(constraint.value, constraint.value, chance), ensure_ascii=False)
        assert constraint.kind == "grammar"
        return Grammar(constraint.value).sample(chance)

    return answer


_PIECES = (
    "a",
    "ß",
    "日",
    "👍🏽",
    '"',
    "\\",
    "{}",
    "<|im_end|>",
    " ",
    "\n",
    "word ",
    "Verdict: ",
    "|",
    "\x00",
    "\u202e",
)


def _value(schema: Mapping[str, Any], root: Mapping[str, Any], chance: random.Random) -> Any:
    if "$ref" in schema:
        return _value(root["$defs"][schema["$ref"].rpartition("/")[2]], root, chance)
    if "enum" in schema:
        return chance.choice(schema["enum"])
    if schema["type"] == "object":
        assert schema["additionalProperties"] is False and schema["required"] == list(schema["properties"])
        return {key: _value(each, root, chance) for key, each in schema["properties"].items()}
    if schema["type"] == "array":
        return [_value(schema["items"], root, chance) for _ in range(chance.randint(0, schema["maxItems"]))]
    assert schema["type"] == "string"
    text = "".join(chance.choices(_PIECES, k=chance.randint(1, 9)))
    return text[: schema["maxLength"]]


class Grammar:
    """A grammar in the dialect of xgrammar, as far as ours use it: rules, strings, classes, groups, ``{m,n}``, ``|``."""

    _TOKEN = re.compile(r'\s*("(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\{\d+,\d+\}|[()|]|\w+)')

    def __init__(self, text: str) -> None:
        self._rules = dict(line.split(" ::= ", 1) for line in text.splitlines() if line)

    def sample(self, chance: random.Random) -> str:
        """Some text of the grammar."""
        return self._rule("root", chance)

    def _rule(self, name: str, chance: random.Random) -> str:
        tokens = self._TOKEN.findall(self._rules[name])
        assert "".join(tokens) == re.sub(r'("(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\])|\s', r"\1", self._rules[name])
        text, rest = self._choice(tokens, chance)
        assert not rest
        return text

    def _choice(self, tokens: list[str], chance: random.Random) -> tuple[str, list[str]]:
        options = []
        while True:
            text, tokens = self._sequence(tokens, chance)
            options.append(text)
            if not tokens or tokens[0] != "|":
                return chance.choice(options), tokens
            tokens = tokens[1:]

    def _sequence(self, tokens: list[str], chance: random.Random) -> tuple[str, list[str]]:
        made = ""
        while tokens and tokens[0] not in "|)":
            start = tokens
            _, rest = self._one(start, chance)
            low, high = 1, 1
            if rest and rest[0].startswith("{"):
                low, high = map(int, rest[0].strip("{}").split(","))
                rest = rest[1:]
            made += "".join(self._one(start, chance)[0] for _ in range(chance.randint(low, high)))
            tokens = rest
        return made, tokens

    def _one(self, tokens: list[str], chance: random.Random) -> tuple[str, list[str]]:
        token, rest = tokens[0], tokens[1:]
        if token == "(":
            text, rest = self._choice(rest, chance)
            assert rest[0] == ")"
            return text, rest[1:]
        if token.startswith('"'):
            return json.loads(token), rest
        if token.startswith("["):
            allowed = re.compile(token)
            while True:
                character = chr(chance.choice((chance.randrange(32, 127), chance.randrange(0x110000))))
                if allowed.match(character) and not 0xD800 <= ord(character) <= 0xDFFF:
                    return character, rest
        return self._rule(token, chance), rest
