"""Asks no model: shows what would be asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from pipeline.engines.protocol import Constraint, Message

Value = TypeVar("Value")


class Recorded(NamedTuple):
    """A call that a planner has made."""

    messages: tuple[Message, ...]
    constraint: Constraint | None
    max_tokens: int
    #: The valid answer that it was given.
    example: str


class PromptRecorder:
    """Answers every call with its own example (:class:`pipeline.teach.protocol.Ask`) and keeps what was asked."""

    def __init__(self) -> None:
        self.calls: list[Recorded] = []

    async def __call__(
        self,
        messages: Sequence[Message],
        constraint: Constraint | None,
        parse: Callable[[str], Value],
        *,
        max_tokens: int,
        example: str,
    ) -> tuple[Value, str]:
        """See :class:`pipeline.teach.protocol.Ask`. Raises ValueError where a planner's example is not valid."""
        self.calls.append(Recorded(tuple(messages), constraint, max_tokens, example))
        return parse(example), example
