"""Tokens as they are shown: each in one cell; whitespace, and all that a terminal would act on, made visible.

A cell is a *lead* of one column and a *body*. The lead is a space where the token begins with one, and a
quiet joiner where the token goes on without: lanes read as text, and tokens can be told apart.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size

from pipeline.grid.tokens import Tokenizer

SILENCE, END, JOINER, SPACE, CONTINUED, CROPPED = "·", "▪", "╶", "␣", "‥", "…"

#: Runs of a sign that are longer are counted: indented code has tokens of 30 spaces.
_LONGEST_RUN = 4

_SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍", " ": SPACE}


class Piece(NamedTuple):
    """Some of a cell's text. Quiet: a sign that stands for something, shown dim."""

    text: str
    quiet: bool


class Cell(NamedTuple):
    """One token, ready to be shown."""

    #: The token begins with a single space, or stands where no word is being continued.
    apart: bool
    #: The last character is whitespace, so the next token continues no word.
    closed: bool
    body: tuple[Piece, ...]
    #: Columns that the body takes.
    width: int


END_CELL = Cell(True, True, (Piece(END, False),), 1)


def cells(tokenizer: Tokenizer, tokens: NDArray[np.int32], end_id: int | None) -> Iterator[Cell]:
    """The cells of one span's ``tokens``, in order; ``end_id`` is shown as the end of a message.

    A character whose bytes are spread over several tokens is shown where it begins; the tokens that only
    continue it show ``‥``.
    """
    return map(text_cell, texts(tokenizer, tokens, end_id))


def texts(tokenizer: Tokenizer, tokens: NDArray[np.int32], end_id: int | None) -> list[str | None]:
    """For each of a span's tokens the characters that begin in it; None for the end of a message."""
    last_is_end = len(tokens) > 0 and end_id is not None and int(tokens[-1]) == end_id
    content = tokens[:-1] if last_is_end else tokens
    spelling = tokenizer.spell(content)
    joined = spelling.text.tobytes()
    ends = spelling.offsets[1:].tolist()
    shown: list[str | None] = []
    if joined.isascii():
        text = joined.decode("ascii")
        begin = 0
        for end in ends:
            shown.append(text[begin:end])
            begin = end
    else:
        begin = 0
        for end in ends:
            while end < len(joined) and joined[end] & 0xC0 == 0x80:  # the rest of a character that has begun
                end += 1
            shown.append(joined[begin:end].decode("utf-8", "replace"))
            begin = end
    if last_is_end:
        shown.append(None)
    return shown


@lru_cache(maxsize=1 << 16)
def text_cell(text: str | None) -> Cell:
    """The cell of one token's text. None: the end of a message. Empty: the token continues a character."""
    if text is None:
        return END_CELL
    if not text:
        return Cell(True, False, (Piece(CONTINUED, True),), 1)
    apart = text[0] == " "
    pieces = tuple(_pieces(text[1:] if apart and text.strip(" ") else text))
    return Cell(apart, text[-1].isspace(), pieces, cell_len("".join(piece.text for piece in pieces)))


def _pieces(text: str) -> Iterator[Piece]:
    """The text with signs for what cannot be seen, in runs of loud and quiet."""
    signs: list[tuple[str, bool]] = []
    begin, end = len(text) - len(text.lstrip(" ")), len(text.rstrip(" "))
    for place, char in enumerate(text):
        between_words = char == " " and begin <= place < end
        signs.append((char, False) if between_words else _visible(char, first=place == 0))
    for quiet, group in groupby(signs, key=lambda sign: sign[1]):
        run = [sign for sign, _ in group]
        yield Piece("".join(_counted(run) if quiet else run), quiet)


@lru_cache(maxsize=1 << 12)
def _visible(char: str, first: bool) -> tuple[str, bool]:
    if char in _SIGNS:
        return _SIGNS[char], True
    category = unicodedata.category(char)
    if category[0] in "CZ":  # control, format, private, unassigned; other spaces
        return f"‹{ord(char):x}›", True
    if first and cell_len(char) == 0:  # it would change whatever is to the left
        accent = category[0] == "M" and "VARIATION SELECTOR" not in unicodedata.name(char, "")
        return (f"◌{char}", False) if accent else (f"‹{ord(char):x}›", True)
    return char, False


def _counted(signs: Iterable[str]) -> Iterator[str]:
    """Long runs of one sign as the sign and its count."""
    for sign, run in groupby(signs):
        length = len(list(run))
        yield sign * length if length <= _LONGEST_RUN else f"{sign}×{length}"


def visible(text: str) -> str:
    """A name or id with nothing in it that a terminal would act on."""
    return "".join(char if char == " " else _visible(char, first=False)[0] for char in text)


def crop(cell: Cell, width: int) -> Cell:
    """The cell in at most ``width`` columns; what does not fit is replaced by ``…``."""
    if cell.width <= width:
        return cell
    left = width - 1
    body: list[Piece] = []
    for text, quiet in cell.body:
        wide = cell_len(text)
        if wide > left:
            # A wide character may not fit into the last column; set_cell_size leaves a space there.
            body.append(Piece(set_cell_size(text, left), quiet))
            break
        body.append(Piece(text, quiet))
        left -= wide
    return Cell(cell.apart, cell.closed, (*body, Piece(CROPPED, True)), width)
