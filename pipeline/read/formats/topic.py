"""A topic, or a prompt that nobody has answered: one user part, from which a teacher makes a whole conversation."""

from __future__ import annotations

from typing import Any

from pipeline.errors import Reason, Rejected
from pipeline.read.conversation import Conversation
from pipeline.read.formats.build import Builder
from pipeline.read.formats.fields import field_text, find_messages
from pipeline.read.formats.prompt_completion import PAIRS

#: Where the text stands; the first of them that a record has. A topic beside a prompt is only its label.
FIELDS = ("prompt", "topic")

#: A record with one of these holds more than a topic, in a form that no format knows: to read its topic would lose it.
MORE = frozenset(answer for _, answer in PAIRS) | {
    "answers", "chosen", "completions", "content", "document", "output", "outputs", "rejected", "responses", "solution",
    "target", "text",
}  # fmt: skip


def matches(record: Any, field: str | None = None) -> bool:
    """The record has a text in ``prompt`` or ``topic``, and nothing that may be an answer or messages."""
    name = _field(record, field)
    return name is not None and isinstance(record[name], str) and _more(record) is None


def read(record: Any, field: str | None = None) -> Conversation:
    """Read one record: one user part, everything else is meta. Raises Rejected, also where there is an answer."""
    name = _field(record, field)
    if name is None:
        raise Rejected(Reason.NO_MESSAGES, f"the record has neither {' nor '.join(FIELDS)}")
    more = _more(record)
    if more is not None:
        raise Rejected(Reason.NO_MESSAGES, f"field {more!r} holds more than a topic, and no format reads both")
    text = field_text(record, name)
    if not text.strip():
        raise Rejected(Reason.NO_MESSAGES, f"field {name!r} is empty")
    builder = Builder()
    builder.add("user", text, 0)
    return builder.conversation({other: value for other, value in record.items() if other != name})


def _field(record: Any, field: str | None) -> str | None:
    if field is None and isinstance(record, dict):
        return next((name for name in FIELDS if name in record), None)
    return None


def _more(record: dict[str, Any]) -> str | None:
    """A field that holds an answer, or what may be messages; None if there is none."""
    return next((name for name in record if name in MORE or _may_be_messages(find_messages(record, name))), None)


def _may_be_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
