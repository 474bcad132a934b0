"""Quarantine lines: where a rejected record came from, why it was rejected, and the record itself or its place."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from pipeline import schema
from pipeline.errors import Reason

#: A raw record up to this size is kept in its line; of a larger one only the place is.
KEPT_BYTES = 1 << 16


def line(
    file: str,
    record: int,
    offset: int,
    length: int,
    raw: bytes | None,
    sha256: bytes | None,
    reason: Reason,
    message: str,
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
        "reason": str(reason),
        "message": message.encode("utf-8", "backslashreplace").decode(),
        "raw": _as_text(raw),
    }
    schema.check("quarantine", document, f"quarantine line of {file}:{record}")
    return msgspec.json.encode(document)


def _as_text(raw: bytes | None) -> str | None:
    if raw is None or len(raw) > KEPT_BYTES:
        return None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
