"""One raw record to one conversation."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import msgspec

from pipeline.errors import Reason, Rejected
from pipeline.read.containers.structure import nesting
from pipeline.read.conversation import Conversation
from pipeline.read.formats import ALSO_READS, FORMATS, REGISTRY, format_of, usable_field

#: Deeper nesting is refused. Far below Python's recursion limit, so that the answer does not depend on the
#: caller's stack.
MAX_DEPTH = 256

_decode = msgspec.json.Decoder().decode
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def decode(raw: bytes) -> Any:
    """The JSON value of a record, integers exact. Raises Rejected: invalid JSON or Unicode, too deep."""
    # Text is rarely that rich in brackets: the depth is measured only where it could be too large.
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and (depth := nesting(raw)) > MAX_DEPTH:
        raise Rejected(Reason.TOO_DEEP, f"nested {depth:,} levels deep, more than {MAX_DEPTH}")
    try:
        return _decode(raw)
    except UnicodeDecodeError as error:
        raise Rejected(Reason.INVALID_UNICODE, f"not UTF-8: {error.reason}") from None
    except RecursionError:
        raise Rejected(Reason.TOO_DEEP, f"nested too deep, more than {MAX_DEPTH} levels") from None
    except msgspec.DecodeError as error:
        _refuse(raw, error)


def _refuse(raw: bytes, error: msgspec.DecodeError) -> NoReturn:
    """Tell a lone surrogate, which is good JSON but no text, from bad JSON."""
    if _SURROGATE.search(raw):
        try:
            json.loads(raw)
        except (ValueError, RecursionError):
            pass
        else:
            raise Rejected(Reason.INVALID_UNICODE, "a lone surrogate (\\ud800 to \\udfff) is not text") from None
    try:
        raw.decode()
    except UnicodeDecodeError as bad:
        raise Rejected(Reason.INVALID_UNICODE, f"not UTF-8: {bad.reason} at byte {bad.start:,}") from None
    raise Rejected(Reason.INVALID_JSON, str(error) if raw else "an empty array element") from None


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
            if other is not None and other not in (format, ALSO_READS.get(format)):
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
