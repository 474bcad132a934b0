"""Alpaca: ``instruction`` (the system text), ``input`` (the user's, if not empty) and ``output``.

Dolly is the same under other names: ``instruction``, ``context`` and ``response``.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import Reason, Rejected
from pipeline.read.conversation import Conversation
from pipeline.read.formats.build import Builder
from pipeline.read.formats.fields import field_text

#: Names of the user's text and of the answer.
_NAMES = (("input", "output"), ("context", "response"))


def _names(record: Any, field: str | None) -> tuple[str, str] | None:
    if field is not None or not isinstance(record, dict) or "instruction" not in record:
        return None
    if "output" in record:
        return _NAMES[0]
    return _NAMES[1] if "context" in record and "response" in record else None


def matches(record: Any, field: str | None = None) -> bool:
    """The record has ``instruction`` and the other fields; never where a field for messages is named."""
    return _names(record, field) is not None


def read(record: Any, field: str | None = None) -> Conversation:
    """Read one record; instruction, input and output count as messages 0, 1 and 2. Raises Rejected."""
    names = _names(record, field)
    if names is None:
        raise Rejected(Reason.NO_MESSAGES, "the record has no fields 'instruction' and 'output'")
    user, output = names
    builder = Builder()
    builder.add("system", field_text(record, "instruction"), 0)
    if record.get(user) not in (None, ""):
        builder.add("user", field_text(record, user), 1)
    builder.answer(field_text(record, output), 2)
    taken = ("instruction", user, output)
    return builder.conversation({name: value for name, value in record.items() if name not in taken})
