"""The token ids of silence and of the end of a message."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.grid.tokens import Tokenizer
from pipeline.layout import Layout


class TokenIds(NamedTuple):
    """Which ids stand for silence and for the end of a message (None where no stream has an end)."""

    silence_id: int
    end_id: int | None


def token_ids(layout: Layout, tokenizer: Tokenizer) -> TokenIds:
    """The ids that a layout asks for. New ids follow the vocabulary: silence, then end."""
    new = tokenizer.vocab_size
    if layout.silence is None:
        silence, new = new, new + 1
    else:
        silence = tokenizer.token_id(layout.silence, f"layout {layout.name}: silence")
    if not any(stream.end for stream in layout.streams):
        return TokenIds(silence, None)
    if layout.end is None:
        return TokenIds(silence, new)
    end = tokenizer.token_id(layout.end, f"layout {layout.name}: end")
    if end not in tokenizer.control_ids:
        raise UserError(
            f"layout {layout.name}: end: '{layout.end}' is an ordinary token of tokenizer '{tokenizer.name}', which "
            f"content can hold; give a control token, or null for a new token id"
        )
    return TokenIds(silence, end)
