"""A conversation as a table: a line of stream names, then lines of cells, parted by ``|``. Written, constrained, read.

    User|Output|Doubt
    Two|-|-
    plus two?|-|easy
    -|Four.|sure?

A cell is a word or a short phrase, or the sign of silence. The first row has words in the stream that opens (the user's),
the last in the one that closes (the model's answer), so there is always something to be learned from.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.engines.protocol import Constraint
from pipeline.layout import DROP, REJECT, Layout

#: Not in a cell: the bar, and what is no visible character (control characters, line and paragraph separators, halves of
#: characters, which a byte-wise grammar would let through).
_UNWANTED = r"|\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_UNWANTED_IN_CELL = re.compile(f"[{_UNWANTED}]")

_SILENCE = "-"


class Table(NamedTuple):
    """The form of a table for one layout."""

    streams: tuple[str, ...]
    #: What a silent cell holds.
    silence: str
    #: Columns that must have words in the first and in the last row.
    opens: int | None
    closes: int
    #: The most rows, and the most characters of a cell.
    rows: int
    characters: int

    @property
    def header(self) -> str:
        """The first line."""
        return "|".join(self.streams)

    @property
    def max_tokens(self) -> int:
        """Room for full tables at a token per character; a table is rarely a third full, and words take fewer tokens."""
        return len(self.header) + 8 + self.rows * len(self.streams) * (self.characters + 1)

    @property
    def example(self) -> str:
        """A valid table."""
        first, last = [self.silence] * len(self.streams), [self.silence] * len(self.streams)
        if self.opens is not None:
            first[self.opens] = "Hi"
        last[self.closes] = "Hi"
        return "\n".join([self.header, "|".join(first), "|".join(last)])

    @property
    def constraint(self) -> Constraint:
        """A grammar that gives tables which :meth:`parse` reads, and nothing else."""
        cells = ["cell"] * len(self.streams)
        opening, closing = list(cells), list(cells)
        if self.opens is not None:
            opening[self.opens] = "words"
        closing[self.closes] = "words"
        line = ' "|" '.join
        # Words begin with neither a blank nor the sign of silence, so that none can be mistaken for it.
        return Constraint(
            "grammar",
            f'root ::= {_literal(self.header)} "\\n" opening "\\n" (row "\\n"){{0,{self.rows - 2}}} closing\n'
            f"opening ::= {line(opening)}\n"
            f"row ::= {line(cells)}\n"
            f"closing ::= {line(closing)}\n"
            f"cell ::= {_literal(self.silence)} | words\n"
            f"words ::= [^ {_in_class(self.silence[0])}{_UNWANTED}] [^{_UNWANTED}]{{0,{self.characters - 1}}}\n",
        )

    def parse(self, text: str) -> list[list[str | None]]:
        """The cells of all rows, None for silence. Raises ValueError saying which line is wrong, and how."""
        header, *lines = text.strip("\n").split("\n")
        if [name.strip(" ") for name in header.split("|")] != list(self.streams):
            raise ValueError(f"line 1 must be the names of the streams: {self.header}")
        if not 2 <= len(lines) <= self.rows:
            raise ValueError(f"there are {len(lines)} rows below the names; 2 to {self.rows} are allowed")
        table = [self._row(line, number) for number, line in enumerate(lines, 2)]
        if self.opens is not None and table[0][self.opens] is None:
            raise ValueError(
                f"line 2: {self.streams[self.opens]} is silent, but the first row must open with its words"
            )
        if table[-1][self.closes] is None:
            raise ValueError(
                f"line {len(lines) + 1}: {self.streams[self.closes]} is silent, but the last row must hold its last words"
            )
        return table

    def _row(self, line: str, number: int) -> list[str | None]:
        cells = [cell.strip(" ") for cell in line.split("|")]
        if len(cells) != len(self.streams):
            raise ValueError(f"line {number} has {len(cells)} cells; line 1 has {len(self.streams)}")
        for name, cell in zip(self.streams, cells, strict=True):
            if not cell:
                raise ValueError(f"line {number}: the cell of {name} is empty; silence is written as {self.silence}")
            if unwanted := _UNWANTED_IN_CELL.search(cell):
                raise ValueError(f"line {number}: the cell of {name} holds the character {unwanted[0]!r}")
            if len(cell) > self.characters:
                raise ValueError(
                    f"line {number}: the cell of {name} has {len(cell)} characters; at most {self.characters} are allowed: "
                    f"a word or a short phrase, the rest in the next rows"
                )
        return [None if cell == self.silence else cell for cell in cells]


def table_for(layout: Layout, rows: int, characters: int) -> Table:
    """The table of a layout's streams, clocks left out; some stream must be an output."""
    streams = [stream for stream in layout.streams if stream.clock is None]
    names = [stream.name for stream in streams]
    inputs = [stream.name for stream in streams if stream.kind == "input"]
    outputs = [stream.name for stream in streams if stream.kind == "output"]
    opens, closes = layout.roles["user"], layout.roles["answer"]
    if opens in (DROP, REJECT) and inputs:
        opens = inputs[0]
    if closes in (DROP, REJECT):
        closes = outputs[0]
    return Table(
        tuple(names),
        _sign(layout.silence),
        names.index(opens) if opens in names else None,
        names.index(closes),
        rows,
        characters,
    )


def _sign(silence: str | None) -> str:
    """The layout's own sign for silence, if it can stand in a table and no word could begin with it."""
    sign = (silence or "").strip()
    if not sign or sign[0].isalnum() or " " in sign or _UNWANTED_IN_CELL.search(sign):
        return _SILENCE
    return sign


def _literal(text: str) -> str:
    """A string of the grammar."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _in_class(character: str) -> str:
    """A character inside ``[^…]`` of the grammar."""
    return f"\\{character}" if character in "\\]^-[" else character
