"""What a teacher's plan rests on, under another layout: what was read to make it must be read there too (DESIGN §3).

An edge is order in time and may join any two streams; evidence, which a teacher chose or wrote from, respects visibility.
A stored plan does not say which edges are evidence. It shows:

* Generated text rests on all that its teacher was shown: what had ended before it, in streams that the old layout let its
  stream read (:mod:`pipeline.teach.causal`). Its own edges are not enough: whoever thinks about a user's second sentence
  has read the first, and the answer before it.
* A recorded thought or answer is paced by a teacher if it begins before all earlier input of its turn has ended, which
  no default edge allows. Its edges to that input are evidence then. A part that waits for all of it says nothing that the
  default edges would not say; these are order in time, and stay.

Evidence that the new layout hides is neither dropped nor kept: the record is rejected. Without the edge, an answer
could come before the question that it answers, which breaks the order in time. With it, the moment at which a stream
speaks would depend on what the stream cannot read, which nobody can learn (DESIGN §9).
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import Reason, Rejected
from pipeline.layout import Layout
from pipeline.plan.order import Order
from pipeline.plan.plan import Segment
from pipeline.plan.turns import turn_starts
from pipeline.read.conversation import INPUT_ROLES, Part


def check_evidence(
    segments: Sequence[Segment], parts: Sequence[Part], old: Layout, new: Layout, streams: Sequence[str | None]
) -> None:
    """Check a teacher's plan for ``old``; its segment i goes to ``streams[i]`` of ``new``, or is left out (None).

    Not for a plan that replaces its conversation: its teacher wrote all streams at once, from none of them.
    Raises :class:`Rejected` (``causality``) naming segments, streams and layout.
    """
    hidden = _Hidden(segments, old, new, streams)
    order = Order(segments)
    paced = _paced_by(segments, parts, order)
    for number, segment in enumerate(segments):
        if segment.part == -1:
            for stream, newest in order.begins(number).items():
                if hidden.first(number, stream) <= newest:
                    raise hidden.rejected(number, hidden.first(number, stream), "comes from a teacher who had read")
        else:
            for d, _ in segment.after:
                if segments[d].part in paced[segment.part] and streams[d] is not None and hidden.hides(number, d):
                    raise hidden.rejected(number, d, "was paced by a teacher with")


def unread(segments: Sequence[Segment], layout: Layout) -> tuple[int, int] | None:
    """The first edge of generated text to what its stream may not read: its segment, and the one that it waits for."""
    if layout.visibility is None:
        return None
    for number, segment in enumerate(segments):
        if segment.part == -1:
            for d, _ in segment.after:
                if not layout.sees(segment.stream, segments[d].stream):
                    return number, d
    return None


class _Hidden:
    """What segments could read under the old layout, and cannot under the new one."""

    def __init__(self, segments: Sequence[Segment], old: Layout, new: Layout, streams: Sequence[str | None]) -> None:
        self._segments = segments
        self._old = old
        self._new = new
        self._streams = streams
        #: For a reader's old and new stream and another old stream, the first segment there that is hidden now.
        self._first: dict[tuple[str, str | None, str], int] = {}

    def hides(self, reader: int, other: int) -> bool:
        """Whether the segment ``reader`` could read ``other``, and cannot any more; nothing is lost with an empty one."""
        segment = self._segments[other]
        if not segment.text and segment.begin == segment.end:
            return False
        if not self._old.sees(self._segments[reader].stream, segment.stream):
            return False
        own, stream = self._streams[reader], self._streams[other]
        return own is not None and (stream is None or not self._new.sees(own, stream))

    def first(self, reader: int, stream: str) -> int:
        """The first segment of the old ``stream`` that is hidden from ``reader``; beyond all where none is."""
        key = (self._segments[reader].stream, self._streams[reader], stream)
        if key not in self._first:
            self._first[key] = next(
                (i for i, each in enumerate(self._segments) if each.stream == stream and self.hides(reader, i)),
                len(self._segments),
            )
        return self._first[key]

    def rejected(self, reader: int, other: int, how: str) -> Rejected:
        """Says so."""
        own, stream = self._streams[reader], self._streams[other]
        which = f"which layout '{self._new.name}' " + (
            "drops" if stream is None else f"has in stream '{stream}', and hides from '{own}'"
        )
        return Rejected(
            Reason.CAUSALITY,
            f"segment {reader} of the plan, in stream '{self._segments[reader].stream}', {how} segment {other} in stream "
            f"'{self._segments[other].stream}', {which}; plan again for this layout, without --plans",
        )


def _paced_by(segments: Sequence[Segment], parts: Sequence[Part], order: Order) -> list[frozenset[int]]:
    """For every part, the input parts whose pieces a teacher paced it by; none where it keeps the default edges."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, segment in enumerate(segments):
        first.setdefault(segment.part, number)
        last[segment.part] = number
    starts = set(turn_starts(parts))
    paced: list[frozenset[int]] = []
    inputs: list[int] = []
    for index, part in enumerate(parts):
        if index in starts:
            inputs = []
        if part.role in INPUT_ROLES:
            inputs.append(index)
        chosen = False
        if part.role in ("think", "answer"):
            begins = order.begins(first[index])
            chosen = any(begins.get(segments[last[i]].stream, -1) < last[i] for i in inputs)
        paced.append(frozenset(inputs) if chosen else frozenset())
    return paced
