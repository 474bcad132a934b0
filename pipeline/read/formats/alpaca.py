"""Alpaca: ``instruction`` (the system text), ``input`` (the user's, if not empty) and ``output``."""

from __future__ import annotations

from typing import Any

from pipeline.errors import Reason, Rejected
from pipeline.read.conversation import Conversation
from pipeline.read.formats.build import Builder
from pipeline.read.formats.fields import field_text

_FIELDS = frozenset({"instruction", "input", "output"})


def matches(record: Any, field: str | None = None) -> bool:
    """The record has ``instruction`` and ``output``; never where a field for messages is named."""
    return field is None and isinstance(record, dict) and "instruction" in record and "output" in record


def read(record: Any, field: str | None = None) -> Conversation:
    """Read one record; instruction, input and output count as messages 0, 1 and 2. Raises Rejected."""
    if not matches(record, field):
        raise Rejected(Reason.NO_MESSAGES, "the record has no fields 'instruction' and 'output'")
    builder = Builder()
    builder.add("system", field_text(record, "instruction"), 0)
    if record.get("input"):
        builder.add("user", field_text(record, "input"), 1)
    builder.answer(field_text(record, "output"), 2)
    return builder.conversation({name: value for name, value in record.items() if name not in _FIELDS})
