"""Records that are the elements of one JSON array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.read.containers.record import BLANK, CorruptStream, Pending, Record
from pipeline.read.containers.structure import COMMA, Structure

_CLOSE = ord("]")


def split_array(chunks: Iterable[bytes], limit: int, offset: int = 0) -> Iterator[Record]:
    """The elements of the array that the stream holds, white space around them left out.

    Only structure is looked at: an element that is bad JSON inside is one bad record. Where the structure
    breaks (the file ends early, something stands behind the array), the rest is one record that names the
    byte. ``limit`` is the largest record in bytes, ``offset`` the position of the stream's first byte.
    """
    splitter = _Splitter(limit, offset)
    stream = iter(chunks)
    try:
        for chunk in stream:
            yield from splitter.feed(chunk)
            if splitter.broken:
                break
    except CorruptStream as error:
        yield splitter.rest((), f"the rest is lost: {error}")
        return
    if splitter.broken:
        yield splitter.rest(stream, splitter.broken)
    elif not splitter.closed and splitter.opened:
        yield splitter.rest((), "the file ends before the array is closed")


class _Splitter:
    """State between chunks. ``broken`` says what is wrong once the structure is."""

    def __init__(self, limit: int, offset: int) -> None:
        self.opened = self.closed = False
        self.broken = ""
        self._limit = limit
        self._structure = Structure()
        self._pending = Pending(limit, trim=True)
        self._number = 0
        self._position = offset  # of the current chunk
        self._begin = offset  # of the pending element
        self._left = b""  # of the current chunk, when the structure breaks

    def feed(self, chunk: bytes) -> Iterator[Record]:
        begin = 0
        if not self.opened:
            begin = len(chunk) - len(chunk.lstrip(BLANK))
            if begin == len(chunk):
                self._position += begin
                return
            if chunk[begin : begin + 1] != b"[":
                self._break(chunk, begin, "not a JSON array")
                return
            self.opened = True
            begin += 1
        if not self.closed:
            where, marks, depth = self._structure.feed(chunk)
            ends = (depth == 0) | ((depth == 1) & (marks == COMMA))
            for end in where[ends].tolist():
                mark = chunk[end]
                if mark in (COMMA, _CLOSE):
                    body = chunk[begin:end]
                    if not (mark == _CLOSE and self._number == 0 and self._pending.empty and not body.strip(BLANK)):
                        yield self._element(body, begin)
                    begin = end + 1
                    self.closed = mark == _CLOSE
                else:
                    self._break(
                        chunk,
                        begin,
                        f"a bracket is closed that was not opened, at byte {self._position + end:,}",
                    )
                    return
                if self.closed:
                    break
        if self.closed:
            stray = chunk[begin:].lstrip(BLANK)
            if stray:
                self._break(chunk, len(chunk) - len(stray), "something stands behind the end of the array")
                return
        else:
            self._hold(chunk[begin:], begin)
        self._position += len(chunk)

    def _element(self, body: bytes, begin: int) -> Record:
        number, self._number = self._number, self._number + 1
        if self._pending.empty:
            start = begin + len(body) - len(body.lstrip(BLANK))
            if len(body) <= self._limit:
                raw = body.strip(BLANK)
                return Record(number, raw, self._position + start, len(raw))
        self._hold(body, begin)
        return self._pending.take(number, self._begin)

    def _hold(self, piece: bytes, begin: int) -> None:
        if self._pending.empty:
            self._begin = self._position + begin + len(piece) - len(piece.lstrip(BLANK))
        self._pending.add(piece)

    def _break(self, chunk: bytes, begin: int, message: str) -> None:
        self._hold(chunk[begin:], begin)
        self.broken = message

    def rest(self, chunks: Iterable[bytes], message: str) -> Record:
        """Everything from the element that could not be completed to the end of the stream, as one record."""
        begin = self._begin if not self._pending.empty else self._position
        try:
            for chunk in chunks:
                self._pending.add(chunk)
        except CorruptStream as error:
            message = f"{message}; {error}"
        return self._pending.take_rest(self._number, begin, f"{message}; the rest from byte {begin:,} on is one record")
