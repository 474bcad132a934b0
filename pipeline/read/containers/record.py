"""A raw record, and how one is collected from pieces without ever being held when it is too large."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from pipeline.errors import Reason

if TYPE_CHECKING:
    from hashlib import _Hash as HASH

#: White space of JSON. Narrower than ``bytes.strip()``: a vertical tab belongs to the record.
BLANK = b" \t\r\n"


class Record(msgspec.Struct, frozen=True, gc=False):
    """One raw record of a file: the line, array element or row exactly as the container holds it."""

    #: Zero-based number within the file.
    number: int
    #: The bytes; None where they are not held (too large, or the container is broken).
    raw: bytes | None
    #: Position of the first byte in the decompressed file; for Parquet the row number.
    offset: int
    #: Bytes of the raw record, also where they are not held.
    length: int
    #: Set where the container alone decides that the record cannot be converted.
    reason: Reason | None = None
    message: str = ""
    #: SHA-256 of the raw bytes, only where they are not held.
    sha256: bytes | None = None


class CorruptStream(Exception):
    """The container cannot be read further; what was read before stands."""


class Pending:
    """The record being collected: its pieces, or only their length and hash once they pass ``limit`` bytes.

    With ``trim``, white space at both ends does not belong to the record. A record that is larger than
    ``limit`` together with the white space behind it counts as too large: neither is held for the other's
    sake.
    """

    def __init__(self, limit: int, *, trim: bool = False) -> None:
        self._limit = limit
        self._trim = trim
        self._reset()

    def _reset(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0  # bytes added
        # Only once they are no longer held: the hash of all bytes, and of those up to the last that is not
        # white space, and the number of those.
        self._hash: HASH | None = None
        self._trimmed_hash: HASH | None = None
        self._trimmed = 0

    @property
    def empty(self) -> bool:
        """Nothing was added; with ``trim``, nothing but white space."""
        return self._size == 0

    def add(self, piece: bytes) -> None:
        """Append the next bytes."""
        if self._trim and self._size == 0:
            piece = piece.lstrip(BLANK)
        if not piece:
            return
        if self._hash is None and self._size + len(piece) <= self._limit:
            self._pieces.append(piece)
            self._size += len(piece)
            return
        if self._hash is None:
            self._hash = hashlib.sha256()
            held, self._pieces, self._size = self._pieces, [], 0
            for earlier in held:
                self._skip(earlier)
        self._skip(piece)

    def _skip(self, piece: bytes) -> None:
        assert self._hash is not None
        body = piece.rstrip(BLANK) if self._trim else piece
        if body:
            self._hash.update(body)
            self._trimmed = self._size + len(body)
            # A copy is taken only where white space follows that may turn out to be the end.
            self._trimmed_hash = self._hash if len(body) == len(piece) else self._hash.copy()
        elif self._trimmed_hash is self._hash:
            self._trimmed_hash = self._hash.copy()
        self._hash.update(piece[len(body) :])
        self._size += len(piece)

    def take(self, number: int, offset: int) -> Record:
        """The collected record; collecting starts anew."""
        if self._hash is None:
            raw = b"".join(self._pieces)
            if self._trim:
                raw = raw.rstrip(BLANK)
            record = Record(number, raw, offset, len(raw))
        else:
            assert self._trimmed_hash is not None
            record = _oversized(number, offset, self._trimmed, self._limit, self._trimmed_hash.digest())
        self._reset()
        return record

    def take_rest(self, number: int, offset: int, message: str) -> Record:
        """What was collected, as the one record that stands for the unreadable rest of the file."""
        digest = self._hash or hashlib.sha256()
        for piece in self._pieces:
            digest.update(piece)
        length = self._size
        self._reset()
        return Record(number, None, offset, length, Reason.CORRUPT_FILE, message, digest.digest())


def oversized(number: int, raw: bytes, offset: int, limit: int) -> Record:
    """The record that stands for ``raw``, of which only length and hash are kept."""
    return _oversized(number, offset, len(raw), limit, hashlib.sha256(raw).digest())


def _oversized(number: int, offset: int, length: int, limit: int, sha256: bytes) -> Record:
    message = f"{length:,} bytes, more than read.max_record_bytes = {limit:,}"
    return Record(number, None, offset, length, Reason.TOO_LARGE, message, sha256)
