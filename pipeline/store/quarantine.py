"""Quarantine lines: where a rejected record came from, why it was rejected, and the record itself or its place."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from pipeline import schema
from pipeline.errors import Rejected

#: A raw record up to this size is kept in its line; of a larger one only the place is.
KEPT_BYTES = 1 << 16


def line(
    file: str,
    record: int,
    offset: int,
    length: int,
    raw: bytes | None,
    sha256: bytes | None,
    why: Rejected,
) -> bytes:
    """One quarantine line, checked against its schema, without the line break.

    ``offset`` and ``length`` are bytes of the decompressed file, or rows of a Parquet file.
    """
    digest = hashlib.sha256(raw).digest() if raw is not None else sha256
    document: dict[str, Any] = {
        "id": f"{file}:{record}",
        "source": {
            "file": file,
            "record": record,
            "offset": offset,
            "length": length,
            "sha256": digest.hex() if digest is not None else None,
        },
        "reason": str(why.reason),
        "message": _whole(why.message),
        "raw": _as_text(raw),
    }
    if why.answers:
        document["answers"] = [_whole(answer) for answer in why.answers]
    schema.check("quarantine", document, f"quarantine line of {file}:{record}")
    return msgspec.json.encode(document)


def _whole(text: str) -> str:
    """Text that can be written: half a surrogate pair is shown as what it is."""
    return text.encode("utf-8", "backslashreplace").decode()


def _as_text(raw: bytes | None) -> str | None:
    if raw is None or len(raw) > KEPT_BYTES:
        return None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
