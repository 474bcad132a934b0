"""The first records of a file, and the format that they show."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import Rejected
from pipeline.read.containers import Record
from pipeline.read.decode import decode
from pipeline.read.formats import DETECT_RECORDS, UNKNOWN, detect
from pipeline.read.formats.fields import find_messages

#: A format is detected from records within these bounds, so that a file of garbage is not held in memory.
HEAD_RECORDS = 1024
HEAD_BYTES = 32 << 20


def read_head(found: Iterator[Record]) -> list[Record]:
    """The first records: enough to tell the format, or as many as may be held."""
    head: list[Record] = []
    size = parsed = 0
    for record in found:
        head.append(record)
        size += record.length if record.raw is not None else 0
        parsed += _try_decode(record) is not None
        if parsed >= DETECT_RECORDS or len(head) >= HEAD_RECORDS or size >= HEAD_BYTES:
            break
    return head


def format_of_head(head: list[Record], messages_field: str | None) -> str:
    """The name of the format, or ``UNKNOWN``."""
    values = (value for record in head if (value := _try_decode(record)) is not None)
    return detect(values, messages_field) or UNKNOWN


def has_field(head: list[Record], messages_field: str) -> bool:
    """Whether any of the records has the field."""
    return any(find_messages(_try_decode(record), messages_field) is not None for record in head)


def _try_decode(record: Record) -> object | None:
    if record.raw is None:
        return None
    try:
        value: object = decode(record.raw)
    except Rejected:
        return None
    return value
