"""JSON bytes to a value, strictly: a record, and what a record holds as JSON in a string."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import msgspec

from pipeline.errors import Reason, Rejected
from pipeline.read.containers.structure import nesting

#: Deeper nesting is refused. Far below Python's recursion limit, so that the answer does not depend on the
#: caller's stack.
MAX_DEPTH = 256

_decode = msgspec.json.Decoder().decode
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def decode(raw: bytes) -> Any:
    """The JSON value, integers exact. Raises Rejected: invalid JSON or Unicode, too deep."""
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
