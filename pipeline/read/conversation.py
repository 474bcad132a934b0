"""The one form that every corpus is read into: a conversation is an ordered list of parts."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

Role = Literal["system", "user", "think", "answer", "call", "result"]

#: All roles, in the order in which a recorded turn usually has them.
ROLES: tuple[str, ...] = get_args(Role)

#: Roles written by the world; the others are written by the model.
INPUT_ROLES = frozenset({"system", "user", "result"})


class Part(msgspec.Struct, frozen=True, gc=False):
    """One text for one role. One recorded message may give several (reasoning, content, two tool calls)."""

    role: Role
    text: str
    #: Number of the recorded message, from 0.
    message: int
    #: For a result, the index (in ``Conversation.parts``) of the call that it answers; otherwise -1.
    reply_to: int = -1
    #: For a call, the tool's name.
    tool: str | None = None
    #: When the message was recorded, in seconds on any clock; None where the corpus does not say.
    seconds: float | None = None


class Conversation(msgspec.Struct, frozen=True, gc=False):
    """What a corpus recorded, in order.

    ``meta`` is everything else the record said (its own id, labels, tool definitions …), JSON-serialisable.
    """

    parts: list[Part]
    meta: dict[str, Any]
