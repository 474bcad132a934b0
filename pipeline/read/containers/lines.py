"""Records that are lines: ``.jsonl``, ``.ndjson``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.read.containers.record import CorruptStream, Pending, Record, oversized


def split_lines(chunks: Iterable[bytes], limit: int, number: int = 0, offset: int = 0) -> Iterator[Record]:
    """Split at ``\\n`` only; a line of nothing but white space is not a record.

    ``limit`` is the largest record in bytes, ``number`` and ``offset`` belong to the first line of
    ``chunks``. If the stream breaks, the rest (from the start of the line that could not be completed) is one
    record.
    """
    pending = Pending(limit)
    blank = True  # all that is pending is white space: such a line is dropped however long it is
    begin = offset  # of the pending line
    position = offset  # of the current chunk
    try:
        for chunk in chunks:
            lines = chunk.split(b"\n")
            tail = lines.pop()
            if lines:
                first = lines[0]
                if begin != position:
                    if not blank or not (first.isspace() or not first):
                        pending.add(first)
                        yield pending.take(number, begin)
                        number += 1
                    else:
                        pending = Pending(limit)
                    begin = position + len(first) + 1
                    blank = True
                    del lines[0]
                for line in lines:
                    size = len(line)
                    if line and not line.isspace():
                        if size <= limit:
                            yield Record(number, line, begin, size)
                        else:
                            yield oversized(number, line, begin, limit)
                        number += 1
                    begin += size + 1
            if tail:
                pending.add(tail)
                blank = blank and tail.isspace()
            position += len(chunk)
    except CorruptStream as error:
        yield pending.take_rest(number, begin, f"the rest from byte {begin:,} on is lost: {error}")
        return
    if not blank:
        yield pending.take(number, begin)
