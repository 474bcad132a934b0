"""The scheduling rule (DESIGN §3): the unique earliest first row of every segment, in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.errors import Reason, Rejected
from pipeline.plan.plan import Segment


def schedule(segments: Sequence[Segment], lengths: Sequence[int], written: Mapping[str, bool]) -> list[int]:
    """First rows of the segments of one plan.

    ``lengths[i]`` is the token count of segment i, its end marker included; ``written`` says for every stream whether
    the model writes it. With ``said(d, n) = start(d) + min(n, len(d))``::

        start(s) = max( end(previous segment of the same stream),
                        max over [d, n] in after(s) of  said(d, n) + horizon(s, d) + lag(s),
                        earliest(s) )

    ``horizon`` is 1 where the model writes s and d is in another stream: a token at row r of such a stream knows the
    other streams up to row r - 2.
    Raises :class:`Rejected` (``plan_invalid``) for a dependency on a later or unknown segment.
    """
    starts: list[int] = []
    ends: list[int] = []
    free: dict[str, int] = {}
    for number, segment in enumerate(segments):
        stream = segment.stream
        row = free.get(stream, 0)
        if segment.earliest > row:
            row = segment.earliest
        for d, n in segment.after:
            if not 0 <= d < number:
                raise Rejected(Reason.PLAN_INVALID, f"segment {number} waits for segment {d}, which is not before it")
            said = ends[d] if n is None or n >= lengths[d] else starts[d] + n
            said += segment.lag
            if written[stream] and segments[d].stream != stream:
                said += 1
            if said > row:
                row = said
        starts.append(row)
        row += lengths[number]
        ends.append(row)
        free[stream] = row
    return starts
