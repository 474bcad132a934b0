"""One raw record to one conversation."""

from __future__ import annotations

from typing import Any

from pipeline.errors import Reason, Rejected
from pipeline.read.conversation import Conversation
from pipeline.read.decode import decode
from pipeline.read.formats import ALSO_READS, FORMATS, ONLY_ALONE, REGISTRY, format_of, usable_field


def read_conversation(raw: bytes, format: str, messages_field: str | None = None) -> Conversation:
    """The conversation that a raw record holds, read as ``format`` (a name in ``FORMATS``, or ``unknown``).

    Raises Rejected with the reason code and what is wrong where; nothing else, whatever the bytes are.
    """
    record = decode(raw)
    if not isinstance(record, dict | list):
        raise Rejected(Reason.UNKNOWN_FORMAT, "the record is neither an object nor a list of messages")
    module = REGISTRY.get(format)
    if module is None:
        raise Rejected(Reason.UNKNOWN_FORMAT, _unrecognised(record))
    messages_field = usable_field(record, messages_field)
    try:
        return module.read(record, messages_field)
    except Rejected as error:
        if error.reason in (Reason.NO_MESSAGES, Reason.UNKNOWN_ROLE):
            other = format_of(record, messages_field)
            if other is not None and other not in (format, ALSO_READS.get(format), *ONLY_ALONE):
                message = f"the file is read as {format}, but this record is {other}"
                raise Rejected(Reason.UNKNOWN_FORMAT, message) from None
        raise


def _unrecognised(record: Any) -> str:
    """Why no format recognises a record, and the field that may hold its messages."""
    if isinstance(record, list):
        return f"a list that no format recognises; known: {', '.join(FORMATS)}"
    likely = [name for name in record if format_of(record, name) is not None]
    if likely:
        return f"no messages where they usually are; field '{likely[0]}' may hold them: --messages-field {likely[0]}"
    keys = ", ".join(list(record)[:8]) or "none"
    return f"no format recognises a record with the fields {keys}; known: {', '.join(FORMATS)}"
