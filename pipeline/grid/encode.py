"""Texts that are cut into segments, as tokens: every segment decodes on its own to exactly its text (DESIGN §5).

A text is encoded once. Its cuts are byte offsets, found by adding up the bytes of its tokens: the library's own offsets
are slow and have gaps. Where a token crosses a cut, the text is encoded in pieces split there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.grid.tokens import Ids, Tokenizer, batches

Integers = NDArray[np.int64]


class Encoded(NamedTuple):
    """Segments of many texts, in the order in which they were given."""

    #: Tokens; every segment is one slice of them, but not every slice is a segment.
    ids: Ids
    #: Where every segment begins in ``ids``, and how many tokens it has.
    begin: Integers
    length: Integers
    #: Texts that the tokenizer does not give back; their segments mean nothing.
    failed: list[int]


def encode_segments(tokenizer: Tokenizer, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> Encoded:
    """Encode texts that are cut at ``ends`` (code points; for every text at least one, the last being its length)."""
    ids: list[Ids] = []
    begin: list[Integers] = []
    length: list[Integers] = []
    failed: list[int] = []
    offset = 0
    for batch in batches(texts):
        encoded = _encode_batch(tokenizer, texts[batch.start : batch.stop], ends[batch.start : batch.stop])
        ids.append(encoded.ids)
        begin.append(encoded.begin + offset)
        length.append(encoded.length)
        failed.extend(text + batch.start for text in encoded.failed)
        offset += len(encoded.ids)
    empty = np.empty(0, np.int64)
    return Encoded(
        np.concatenate([np.empty(0, np.int32), *ids]),
        np.concatenate([empty, *begin]),
        np.concatenate([empty, *length]),
        failed,
    )


def _encode_batch(tokenizer: Tokenizer, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> Encoded:
    ids, counts = tokenizer.encode(texts)
    joined = "".join(texts).encode()
    segments = np.array(list(map(len, ends)), np.int64)  # [texts]
    cuts, text_ends = _byte_cuts(texts, ends, segments, len(joined))
    spelling = tokenizer.spell(ids)
    said = spelling.offsets  # bytes of the tokens before each one, and of all
    token_end = np.searchsorted(said, cuts, side="right") - 1  # tokens that lie wholly before each cut
    begin = np.concatenate([[0], token_end[:-1]])
    length = token_end - begin
    failed = []
    if not (np.array_equal(said[np.cumsum(counts)], text_ends) and spelling.text.tobytes() == joined):
        failed = _failed(tokenizer, texts, ids, counts)
    if failed:
        # The bytes that they lost would shift every cut behind them: encode again without these texts.
        lost = set(failed)
        kept = ["" if index in lost else text for index, text in enumerate(texts)]
        kept_ends = [[0] * len(own) if index in lost else own for index, own in enumerate(ends)]
        return _encode_batch(tokenizer, kept, kept_ends)._replace(failed=failed)

    crossed = np.flatnonzero(said[token_end] != cuts)
    if not len(crossed):
        return Encoded(ids, begin, length, failed)
    return _encode_pieces(tokenizer, texts, ends, Encoded(ids, begin, length, failed), segments, crossed)


def _byte_cuts(
    texts: Sequence[str], ends: Sequence[Sequence[int]], segments: Integers, size: int
) -> tuple[Integers, Integers]:
    """The end of every segment and of every text, in bytes of all texts joined."""
    lengths = list(map(len, texts))
    if sum(lengths) != size:  # not ASCII
        byte_ends: list[Sequence[int]] = []
        for index, text in enumerate(texts):
            if text.isascii():
                byte_ends.append(ends[index])
                continue
            begin = total = 0
            own = []
            for end in ends[index]:
                total += len(text[begin:end].encode())
                own.append(total)
                begin = end
            byte_ends.append(own)
            lengths[index] = total
        ends = byte_ends
    text_ends = np.cumsum(np.array(lengths, np.int64))
    flat: list[int] = []
    for own_ends in ends:
        flat += own_ends
    return np.array(flat, np.int64) + np.repeat(text_ends - lengths, segments), text_ends


def _failed(tokenizer: Tokenizer, texts: Sequence[str], ids: Ids, counts: Integers) -> list[int]:
    """The texts whose tokens do not spell them: nearly always none, so all are compared at once before."""
    first = 0
    failed = []
    for index, (text, count) in enumerate(zip(texts, counts.tolist(), strict=True)):
        if tokenizer.spell(ids[first : first + count]).text.tobytes() != text.encode():
            failed.append(index)
        first += count
    return failed


def _encode_pieces(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    ends: Sequence[Sequence[int]],
    whole: Encoded,
    segments: Integers,
    crossed: Integers,
) -> Encoded:
    """Encode again, in pieces, the texts in which a token crosses a cut. ``crossed`` are the segments at those cuts."""
    first_segment = np.cumsum(segments) - segments
    owner = np.searchsorted(first_segment, crossed, side="right") - 1
    ids, begin, length, failed = whole
    tails = [ids]
    tail = len(ids)
    begin, length = begin.copy(), length.copy()
    for text in np.unique(owner).tolist():
        first = int(first_segment[text])
        splits = set((crossed[owner == text] - first).tolist())
        pieces: list[str] = []
        piece_ends: list[list[int]] = [[]]
        piece_begin = 0
        for number, end in enumerate(ends[text]):
            piece_ends[-1].append(end - piece_begin)
            if number in splits or number == len(ends[text]) - 1:
                pieces.append(texts[text][piece_begin:end])
                piece_begin = end
                piece_ends.append([])
        # A piece has fewer cuts than its text, so this ends.
        again = _encode_batch(tokenizer, pieces, piece_ends[:-1])
        if again.failed:
            failed = [*failed, text]
        own = slice(first, first + int(segments[text]))
        begin[own] = again.begin + tail
        length[own] = again.length
        tails.append(again.ids)
        tail += len(again.ids)
    return Encoded(np.concatenate(tails), begin, length, failed)
