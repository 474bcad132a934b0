"""Which container a file is, from its name and, for ``.json``, its first bytes."""

from __future__ import annotations

from typing import BinaryIO

import msgspec

from pipeline.read.containers.record import BLANK, CorruptStream
from pipeline.read.containers.source import ByteSource, without_bom

#: File name endings that a directory is searched for, before a compression's own ending.
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSIONS = (".zst", ".gz")


def split_suffix(name: str) -> tuple[str, str]:
    """``a.json.gz`` → ``(".json", "gz")``. An unknown ending gives ``""``: such a file is read as lines."""
    lower = name.lower()
    compression = next((ending for ending in COMPRESSIONS if lower.endswith(ending)), "")
    stem = lower.removesuffix(compression)
    return next((suffix for suffix in SUFFIXES if stem.endswith(suffix)), ""), compression[1:]


def sniff_json(stream: BinaryIO, compression: str, limit: int) -> str:
    """``array``, ``lines`` or ``single`` for a ``.json`` file; two lines (at most ``limit`` bytes) are read.

    A first line that is a value of its own means lines. So does a second one that is an object of its own
    behind a first one that ends in ``}``: the first record of a file may be broken, and must not take the
    others with it.
    """
    head = b""
    try:
        for chunk in without_bom(iter(ByteSource(stream, compression)))[1]:
            head = (head + chunk).lstrip(BLANK)
            if head[:1] == b"[":
                return "array"
            if len(head) > limit or head.count(b"\n") >= 2:
                break
    except CorruptStream:
        pass  # decided by what could be read; the reader meets the same end and reports it
    lines = [line for line in head.split(b"\n") if line.strip(BLANK)][:2]
    if not lines or len(lines[0]) > limit or _parses(lines[0]):
        return "lines"
    if len(lines) > 1 and lines[0].rstrip(BLANK).endswith(b"}") and lines[1][:1] == b"{" and _parses(lines[1]):
        return "lines"
    return "single"


def _parses(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
