"""What a teaching planner and the one who asks for it know of each other.

A planner says what to ask and what a valid answer is; an :class:`Ask` finds the answer in the store or has an engine
give it, asks again where it is invalid, and keeps what the plan's provenance needs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from pipeline.engines.protocol import Constraint, Message
from pipeline.plan.plan import Segment
from pipeline.read.conversation import Part

Value = TypeVar("Value")


class Ask(Protocol):
    """Asks on behalf of one conversation."""

    async def __call__(
        self,
        messages: Sequence[Message],
        constraint: Constraint | None,
        parse: Callable[[str], Value],
        *,
        max_tokens: int,
        example: str,
    ) -> tuple[Value, str]:
        """The parsed answer to ``messages``, and its text.

        ``parse`` raises ValueError saying what is wrong with an answer, in words for the model, which is then asked
        again. ``max_tokens``: no valid answer is longer. ``example``: some valid answer, for whoever wants to see the
        prompts without a model.
        Raises :class:`pipeline.errors.Rejected`, with the raw answers, where no valid answer can be had.
        """
        ...


class TeachingPlanner(Protocol):
    """Parts of one conversation (only those that have a stream) to the segments of its plan."""

    @property
    def longest(self) -> int:
        """The largest ``max_tokens`` of any call that it makes."""
        ...

    def __call__(self, parts: Sequence[Part], ask: Ask, /) -> Awaitable[list[Segment]]: ...
