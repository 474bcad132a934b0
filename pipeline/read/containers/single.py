"""A file that is one record: a pretty-printed JSON object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.read.containers.record import BLANK, CorruptStream, Pending, Record


def read_single(chunks: Iterable[bytes], limit: int, offset: int = 0) -> Iterator[Record]:
    """The whole stream as one record, white space around it left out; an empty stream has none."""
    pending = Pending(limit, trim=True)
    begin = position = offset
    try:
        for chunk in chunks:
            if pending.empty:
                begin = position + len(chunk) - len(chunk.lstrip(BLANK))
            pending.add(chunk)
            position += len(chunk)
    except CorruptStream as error:
        yield pending.take_rest(0, begin, f"the rest from byte {begin:,} on is lost: {error}")
        return
    if not pending.empty:
        yield pending.take(0, begin)
