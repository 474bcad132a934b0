"""Conversations with more rows than a grid may have: cut only between turns, where no stream is speaking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.errors import Reason, Rejected
from pipeline.plan.plan import Segment
from pipeline.plan.turns import turn_starts
from pipeline.read.conversation import Part


class Window(NamedTuple):
    """A run of whole turns that becomes one grid."""

    #: Its segments, in the order of the plan.
    first_segment: int
    end_segment: int
    #: Its parts.
    first_part: int
    end_part: int
    #: The row of the conversation that is its row 0.
    first_row: int


def truncation_key(meta: Mapping[str, Any]) -> str:
    """Where ``meta`` has room to say that a conversation was cut short: what the corpus said there stays."""
    key = "truncated"
    while key in meta:
        key = f"_{key}"
    return key


def split(
    parts: Sequence[Part], segments: Sequence[Segment], starts: Sequence[int], lengths: Sequence[int], max_rows: int
) -> Iterator[Window]:
    """Split a scheduled conversation into windows of at most ``max_rows`` rows, each as long as it can be.

    Raises :class:`Rejected` (``too_long``), after the windows before, where more rows than that lie between two places
    where it can be cut.
    """
    pending: Window | None = None
    for piece, rows in _pieces(parts, segments, starts, lengths):
        if pending is not None and rows.stop - pending.first_row <= max_rows:
            pending = pending._replace(end_segment=piece.end_segment, end_part=piece.end_part)
            continue
        if pending is not None:
            yield pending
        if len(rows) > max_rows:
            raise Rejected(
                Reason.TOO_LONG,
                f"parts {piece.first_part} to {piece.end_part - 1} take {len(rows)} rows and cannot be cut; "
                f"a grid may have {max_rows}",
            )
        pending = piece
    if pending is not None:
        yield pending


def _pieces(
    parts: Sequence[Part], segments: Sequence[Segment], starts: Sequence[int], lengths: Sequence[int]
) -> list[tuple[Window, range]]:
    """The runs of turns that cannot be cut, with the rows that they take."""
    turn_of_part = _turn_numbers(parts)
    first_part = turn_starts(parts)
    bounds: list[tuple[int, int, int, int]] = []  # per turn: its segments' range, its first row, its last row's end
    for number, (segment, start, length) in enumerate(zip(segments, starts, lengths, strict=True)):
        # A generated segment belongs to the turn of the one before it.
        turn = turn_of_part[segment.part] if segment.part >= 0 else max(len(bounds) - 1, 0)
        if turn < len(bounds) - 1:
            return [(Window(0, len(segments), 0, len(parts), 0), range(_last_row(starts, lengths)))]
        while len(bounds) <= turn:
            bounds.append((number, number, start, start))
        begin, _, low, high = bounds[turn]
        bounds[turn] = (begin, number + 1, min(low, start), max(high, start + length))

    pieces: list[tuple[Window, range]] = []
    low_after = _minimum_from_right([low for _, _, low, _ in bounds])
    begun = 0
    highest = 0
    for turn, (_, end_segment, _, high) in enumerate(bounds):
        highest = max(highest, high)
        last = turn == len(bounds) - 1
        if last or low_after[turn + 1] >= highest:
            first_row = min(low for _, _, low, _ in bounds[begun : turn + 1])
            end_part = len(parts) if last else first_part[turn + 1]
            window = Window(bounds[begun][0], end_segment, first_part[begun], end_part, first_row)
            pieces.append((window, range(first_row, highest)))
            begun = turn + 1
    return pieces


def _turn_numbers(parts: Sequence[Part]) -> list[int]:
    starts = set(turn_starts(parts))
    numbers: list[int] = []
    turn = -1
    for index in range(len(parts)):
        turn += index in starts
        numbers.append(turn)
    return numbers


def _minimum_from_right(values: Sequence[int]) -> list[int]:
    result = list(values)
    for index in range(len(result) - 2, -1, -1):
        result[index] = min(result[index], result[index + 1])
    return result


def _last_row(starts: Sequence[int], lengths: Sequence[int]) -> int:
    return max((start + length for start, length in zip(starts, lengths, strict=True)), default=0)
