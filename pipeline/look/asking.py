"""What a model is asked and what it says, as lines of text: prompt beside answer, and the plan that came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.engines.protocol import Constraint, Message
from pipeline.errors import Rejected
from pipeline.look.cells import visible
from pipeline.plan.plan import Plan, Provenance
from pipeline.read.conversation import Part
from pipeline.teach.shard import Witness

Value = TypeVar("Value")

#: Below this width, an answer stands under its prompt instead of beside it.
_SIDE_BY_SIDE = 100
_ROLES = {"system": "bold magenta", "user": "bold cyan", "assistant": "bold green"}


class Call(NamedTuple):
    """One question of a planner, and what was said to it: the accepted answer, or all that were not."""

    messages: tuple[Message, ...]
    constraint: Constraint | None
    max_tokens: int
    answers: tuple[str, ...]


class Watch:
    """Asks as another does, and keeps what was asked."""

    def __init__(self, ask: Witness) -> None:
        self._ask = ask
        self.calls: list[Call] = []

    async def __call__(
        self,
        messages: Sequence[Message],
        constraint: Constraint | None,
        parse: Callable[[str], Value],
        *,
        max_tokens: int,
        example: str,
    ) -> tuple[Value, str]:
        """See :class:`pipeline.teach.protocol.Ask`."""
        try:
            value, text = await self._ask(messages, constraint, parse, max_tokens=max_tokens, example=example)
        except Rejected as reason:
            self.calls.append(Call(tuple(messages), constraint, max_tokens, reason.answers))
            raise
        self.calls.append(Call(tuple(messages), constraint, max_tokens, (text,)))
        return value, text

    def provenance(self, planner: str) -> Provenance:
        """The answers that were used."""
        return self._ask.provenance(planner)


def call_lines(calls: Sequence[Call], width: int, answered: bool = True) -> Iterator[Text]:
    """Every call: its messages, the constraint, and (``answered``) what was said.

    Of a call that goes on from the one before it, only the messages that are new.
    """
    before: tuple[Message, ...] = ()
    for number, call in enumerate(calls, 1):
        shared = len(before) if before and call.messages[: len(before)] == before else 0
        heading = f"call {number} of {len(calls)}"
        if shared:
            heading += f", after the {shared} messages of the call before"
        yield Text(f"── {heading} ".ljust(width, "─"), style="bold")
        prompt = [line for message in call.messages[shared:] for line in _message(message)]
        prompt += [Text(f"at most {call.max_tokens} tokens{_constraint(call.constraint)}", style="dim")]
        said = [line for answer in call.answers for line in _block("answer", "bold green", answer)]
        yield from _beside(prompt, said if answered else [], width)
        before = call.messages


def plan_lines(plan: Plan, parts: Sequence[Part], width: int) -> Iterator[Text]:
    """The segments of a plan: number, stream, text, and what each waits for."""
    yield Text("── plan ".ljust(width, "─"), style="bold")
    names = max([cell_len(segment.stream) for segment in plan.segments], default=0)
    for number, segment in enumerate(plan.segments):
        text = segment.text if segment.text is not None else parts[segment.part].text[segment.begin : segment.end]
        waits = ", ".join(f"{d}" if n is None else f"{d}[:{n}]" for d, n in segment.after)
        line = Text(f"{number:>4}  {segment.stream:<{names}}  ", style="dim")
        line.append(visible(text), style="italic" if segment.part == -1 else "default")
        tail = Text(f"  after {waits}" if waits else "", style="yellow")
        line.truncate(max(width - cell_len(tail.plain), 20), overflow="ellipsis")
        yield line + tail
    yield Text()


def _message(message: Message) -> Iterator[Text]:
    return _block(message.role, _ROLES.get(message.role, "bold"), message.content)


def _block(title: str, style: str, text: str) -> Iterator[Text]:
    yield Text(title, style=style)
    for line in text.split("\n"):
        yield Text(visible(line))


def _constraint(constraint: Constraint | None) -> str:
    if constraint is None:
        return ""
    value = constraint.value
    return f", {constraint.kind} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def _beside(left: Sequence[Text], right: Sequence[Text], width: int) -> Iterator[Text]:
    if not right or width < _SIDE_BY_SIDE:
        yield from _wrapped([*left, *right], width)
        yield Text()
        return
    half = width * 3 // 5
    for one, other in zip_longest(_wrapped(left, half - 2), _wrapped(right, width - half - 2), fillvalue=Text()):
        line = one.copy()
        line.pad_right(max(half - cell_len(one.plain), 0))
        yield line + Text("│ ", style="dim") + other
    yield Text()


def _wrapped(lines: Sequence[Text], width: int) -> Iterator[Text]:
    console = Console(width=width)
    for line in lines:
        yield from line.wrap(console, width) if line.plain else [Text()]
