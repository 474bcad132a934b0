"""What the reading layer can be told."""

from __future__ import annotations

import msgspec

MIB = 1 << 20


class ReadOptions(msgspec.Struct, frozen=True):
    """Options of reading. Every one can change the dataset's bytes, so all belong in the fingerprint."""

    #: Name of a format (``pipeline.read.formats.FORMATS``), or ``auto``: detected per file.
    format: str = "auto"
    #: Field that holds the messages, as a dotted path; None: the format's usual names.
    messages_field: str | None = None
    #: A larger raw record is quarantined as ``too_large`` and never held in memory. Bytes.
    max_record_bytes: int = 16 * MIB
    #: A shard closes when it holds this many records …
    shard_records: int = 8192
    #: … or this many bytes of raw records, whichever comes first.
    shard_bytes: int = 32 * MIB
    #: Read at most this many records, over all files in order; None: all.
    limit: int | None = None
