"""The token ids of silence, of the end of a message, and of the ticks of clocks."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.grid.tokens import Tokenizer
from pipeline.layout import Layout


class TokenIds(NamedTuple):
    """Which ids stand for silence and for the end of a message (None where no stream has an end)."""

    silence_id: int
    end_id: int | None
    #: The tokens that clock streams say, by stream.
    tick_ids: dict[str, int]


def token_ids(layout: Layout, tokenizer: Tokenizer) -> TokenIds:
    """The ids that a layout asks for. New ids follow the vocabulary: silence, then end."""
    new = tokenizer.vocab_size
    ticks = {
        stream.name: tokenizer.token_id(stream.clock.tick, f"layout {layout.name}: clock of '{stream.name}'")
        for stream in layout.streams
        if stream.clock is not None
    }
    if layout.silence is None:
        silence, new = new, new + 1
    else:
        silence = tokenizer.token_id(layout.silence, f"layout {layout.name}: silence")
    for name, tick in ticks.items():
        if tick == silence:
            raise UserError(f"layout {layout.name}: clock of '{name}': its tick is the token that stands for silence")
    if not any(stream.end for stream in layout.streams):
        return TokenIds(silence, None, ticks)
    if layout.end is None:
        return TokenIds(silence, new, ticks)
    end = tokenizer.token_id(layout.end, f"layout {layout.name}: end")
    if end not in tokenizer.control_ids:
        raise UserError(
            f"layout {layout.name}: end: '{layout.end}' is an ordinary token of tokenizer '{tokenizer.name}', which "
            f"content can hold; give a control token, or null for a new token id"
        )
    if end == silence:
        raise UserError(f"layout {layout.name}: end: '{layout.end}' stands for silence already; give another token")
    return TokenIds(silence, end, ticks)
