"""Cells: every token's text is visible, aligned by display width, and harmless to a terminal."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_grids import TOKENIZER_BUILTIN
from rich.cells import cell_len

from pipeline.look.cells import CONTINUED, END, cells, crop, text_cell, texts, visible


def body(text: str | None) -> str:
    return "".join(piece.text for piece in text_cell(text).body)


@pytest.mark.parametrize(
    ("text", "shown", "apart"),
    [
        ("word", "word", False),
        (" word", "word", True),
        (" ", "␣", True),
        ("   x", "␣␣x", True),
        ("x ", "x␣", False),
        (" two words", "two words", True),
        ("\n\n", "⏎⏎", False),
        (".\n", ".⏎", False),
        ("\t\r", "⇥␍", False),
        (" " * 24, "␣×24", True),
        ("\x1b[31m", "‹1b›[31m", False),
        ("\u202e", "‹202e›", False),
        ("\u0301", "◌\u0301", False),
        ("e\u0301", "e\u0301", False),
        ("\U0001f3fd", "‹1f3fd›", False),
        ("\ufe0f", "‹fe0f›", False),
        ("日本", "日本", False),
        ("", CONTINUED, True),
        (None, END, True),
    ],
)
def test_how_a_token_is_shown(text: str | None, shown: str, apart: bool) -> None:
    assert body(text) == shown
    assert text_cell(text).apart is apart


@given(st.text())
def test_nothing_that_a_terminal_acts_on_gets_through(text: str) -> None:
    for shown in (body(text), visible(text)):
        assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in shown)


@given(st.text(), st.integers(1, 40))
def test_a_cropped_cell_fits_and_knows_its_width(text: str, width: int) -> None:
    cell = crop(text_cell(text), width)
    assert cell.width <= width
    assert sum(cell_len(piece.text) for piece in cell.body) == cell.width or len(cell.body) > 1
    assert cell_len("".join(piece.text for piece in cell.body)) == cell.width


@given(st.text(min_size=1))
def test_a_span_shows_every_character_once(text: str) -> None:
    """However the tokenizer splits characters over tokens."""
    tokens, _ = TOKENIZER_BUILTIN.encode([text])
    shown = texts(TOKENIZER_BUILTIN, tokens, None)
    assert len(shown) == len(tokens)
    assert "".join(part or "" for part in shown) == text


def test_a_character_is_shown_where_it_begins() -> None:
    tokens, _ = TOKENIZER_BUILTIN.encode(["🦜"])
    assert len(tokens) > 1
    assert texts(TOKENIZER_BUILTIN, tokens, None) == ["🦜"] + [""] * (len(tokens) - 1)


def test_the_end_of_a_message_is_a_sign_of_its_own() -> None:
    end = TOKENIZER_BUILTIN.vocab_size + 1
    tokens = np.append(TOKENIZER_BUILTIN.encode(["Yes."])[0], end).astype(np.int32)
    assert "".join(p.text for p in list(cells(TOKENIZER_BUILTIN, tokens, end))[-1].body) == END
