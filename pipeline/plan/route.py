"""Which parts of a conversation have a stream in a layout, and which conversations are kept."""

from __future__ import annotations

from collections.abc import Container, Sequence

import msgspec

from pipeline.errors import Reason, Rejected
from pipeline.layout import DROP, REJECT, Layout
from pipeline.plan.turns import turn_starts
from pipeline.read.conversation import INPUT_ROLES, Conversation, Part


class Filter(msgspec.Struct, frozen=True):
    """Conversations outside these limits are left out and counted. None: no limit."""

    min_turns: int = 0
    max_turns: int | None = None
    min_characters: int = 0
    max_characters: int | None = None

    def keeps(self, parts: Sequence[Part]) -> bool:
        """Whether a conversation of these parts is kept."""
        if self == _EVERYTHING:
            return True
        turns = len(turn_starts(parts))
        characters = sum(len(part.text) for part in parts)
        return (
            turns >= self.min_turns
            and (self.max_turns is None or turns <= self.max_turns)
            and characters >= self.min_characters
            and (self.max_characters is None or characters <= self.max_characters)
        )


_EVERYTHING = Filter()


def route(conversation: Conversation, layout: Layout, needs_output: bool = True) -> tuple[list[Part], dict[str, int]]:
    """The parts that the layout has a stream for, and how many of each role it drops.

    Raises :class:`Rejected` for a role that the layout refuses, and where nothing is left that a model wrote, if the plan
    ``needs_output``.
    """
    parts = conversation.parts
    targets = layout.roles
    dropped: dict[str, int] = {}
    written = False
    for part in parts:
        role = part.role
        target = targets[role]
        if target == DROP:
            dropped[role] = dropped.get(role, 0) + 1
        elif target == REJECT:
            raise Rejected(
                Reason.NO_STREAM_FOR_ROLE,
                f"message {part.message}: layout '{layout.name}' has no stream for a {role}; "
                f"'--recipe agent' has one for every role; for another planner, --set layout=agent",
            )
        elif role not in INPUT_ROLES:
            written = True
    if needs_output and not written:
        raise Rejected(Reason.NO_OUTPUT, "nothing in this conversation was written by a model, so it teaches none")
    return (_without(parts, dropped) if dropped else parts), dropped


def _without(parts: Sequence[Part], dropped: Container[str]) -> list[Part]:
    """The parts whose role is not dropped; replies point to the new places of their calls."""
    place: dict[int, int] = {}
    kept: list[Part] = []
    for index, part in enumerate(parts):
        if part.role in dropped:
            continue
        place[index] = len(kept)
        kept.append(msgspec.structs.replace(part, reply_to=place.get(part.reply_to, -1)))
    return kept
