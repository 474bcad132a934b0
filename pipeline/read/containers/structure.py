"""JSON structure without parsing: brackets and commas outside strings, and how deep they are, by numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

QUOTE, COMMA, BACKSLASH = ord('"'), ord(","), ord("\\")

_MARKS = np.zeros(256, bool)
_MARKS[list(b'"[]{},')] = True
_STEP = np.zeros(256, np.int8)  # what a byte does to the depth
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1

_CHUNK = 1 << 20


class Structure:
    """Scans one JSON text given in chunks; strings, escapes and depth carry over from chunk to chunk."""

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = 0
        self._odd = 0  # 1 if the text so far ends in an odd run of backslashes

    def feed(self, chunk: bytes) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """Brackets and commas outside strings: positions in ``chunk``, the bytes, the depth after each."""
        data = np.frombuffer(chunk, np.uint8)
        where = np.flatnonzero(_MARKS[data])
        marks = data[where]
        is_quote = marks == QUOTE
        escaped = self._escaped(chunk, data)
        if escaped is not None:
            is_quote &= ~escaped[where]
        inside = (np.cumsum(is_quote) + self._in_string) & 1  # after each mark
        if len(inside):
            self._in_string = int(inside[-1])
        keep = (inside == 0) & (marks != QUOTE)
        where, marks = where[keep], marks[keep]
        depth = np.cumsum(_STEP[marks], dtype=np.int64) + self.depth
        if len(depth):
            self.depth = int(depth[-1])
        return where, marks, depth

    def _escaped(self, chunk: bytes, data: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
        """Which bytes stand behind an odd run of backslashes; None if none does."""
        carry = self._odd
        self._odd = 0
        if not carry and b"\\" not in chunk:
            return None
        escaped = np.zeros(len(chunk) + 1, bool)
        escaped[0] = carry
        slashes = np.flatnonzero(data == BACKSLASH)
        if len(slashes):
            order = np.arange(len(slashes))
            opens = np.ones(len(slashes), bool)  # the first backslash of a run
            opens[1:] = slashes[1:] != slashes[:-1] + 1
            run = order - np.maximum.accumulate(np.where(opens, order, 0)) + 1
            if carry and slashes[0] == 0:
                closes = np.flatnonzero(opens[1:])
                run[: closes[0] + 1 if len(closes) else len(run)] += 1
            escaped[slashes[(run & 1) == 1] + 1] = True
            # Only the byte behind a whole run counts; inside a run the next byte is a backslash, never a
            # quote.
        self._odd = int(escaped[-1]) if len(chunk) else carry
        return escaped[:-1]


def nesting(text: bytes) -> int:
    """How deep brackets outside strings are nested, by structure alone: the text need not be valid JSON."""
    structure = Structure()
    deepest = 0
    for begin in range(0, len(text), _CHUNK):
        depth = structure.feed(text[begin : begin + _CHUNK])[2]
        if len(depth):
            deepest = max(deepest, int(depth.max()))
    return deepest
