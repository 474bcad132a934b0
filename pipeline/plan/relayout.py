"""A plan that was made for one layout, for another: what may be said elsewhere, and what is no longer said.

A stored plan numbers the parts that its layout kept, names its streams, and leaves to each stream to keep its own order.
All three change with the layout. What is kept is the order: a segment that had to end before another one began still does,
by an edge where two streams now say what one said before, and past everything that is no longer said.

* A part goes to the stream of its role; from lane j to lane j mod n. Generated text stays in the stream of that name.
* Whoever waited for a segment that is no longer said waits for all that this one waited for, in full where that was
  ``[d, n]``: it had been going along with d, and how far it came nobody can tell without a tokenizer.
* Of these edges only those are written that do not follow from others, so at most one for every stream.
* ``lag`` and ``earliest`` stay as they were planned; a lag counts from the new edges too. Those of a segment that is no
  longer said go with it, as its rows do.
* What a teacher made rests on what could be read, and is rejected where the new layout hides it
  (:mod:`pipeline.plan.evidence`). A rule's edges are order in time, whoever may read whom.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import Reason, Rejected
from pipeline.layout import DROP, REJECT, Layout
from pipeline.plan.edges import streams_for
from pipeline.plan.evidence import check_evidence, unread
from pipeline.plan.order import Clock, latest
from pipeline.plan.plan import Dependency, Segment, check_plan, replaces
from pipeline.read.conversation import Part


def relayout(
    segments: list[Segment], recorded: Sequence[Part], old: Layout, new: Layout, taught: bool = False
) -> list[Segment]:
    """The segments of a plan made for ``old``, for ``new``. ``recorded`` are the parts before any layout dropped some;
    ``taught``: a teacher made the plan.

    Raises :class:`Rejected` (``plan_invalid``) where the plan does not fit the parts, where ``new`` keeps what ``old``
    dropped, and where it has no stream for generated text; (``causality``) where ``new`` hides what a teacher's plan
    rests on.
    """
    if old == new:
        return segments
    planned = [part for part in recorded if old.roles[part.role] not in (DROP, REJECT)]
    lacking = {
        part.role for part in recorded if old.roles[part.role] in (DROP, REJECT) and new.roles[part.role] != DROP
    }
    if lacking and not replaces(segments):
        roles = " and ".join(sorted(lacking))
        raise Rejected(
            Reason.PLAN_INVALID, f"the plan was made without {roles} parts, which this layout keeps; plan again"
        )
    check_plan(segments, planned, streams_for(old), old.written())
    number = _numbers(planned, new)
    streams = _Streams(planned, old, new)
    moved = [
        streams.of_generated(each) if each.part == -1 else streams.of(each) if each.part in number else None
        for each in segments
    ]
    by_a_teacher = taught and not replaces(segments)
    if by_a_teacher:
        check_evidence(segments, planned, old, new, moved)
    order = _Order()
    for segment, stream in zip(segments, moved, strict=True):
        if stream is None:
            order.leave_out(segment)
        else:
            order.say(segment, stream, number.get(segment.part, -1))
    if by_a_teacher and (edge := unread(order.segments, new)):
        raise Rejected(
            Reason.CAUSALITY,
            f"segment {edge[0]}, in stream '{order.segments[edge[0]].stream}', would have to wait for segment {edge[1]}, in "
            f"stream '{order.segments[edge[1]].stream}', which it may not read in layout '{new.name}'; plan again",
        )
    return order.segments


def _numbers(planned: Sequence[Part], new: Layout) -> dict[int, int]:
    """The new numbers of the parts that are kept."""
    kept = [index for index, part in enumerate(planned) if new.roles[part.role] != DROP]
    return {index: number for number, index in enumerate(kept)}


class _Streams:
    """Where segments go."""

    def __init__(self, planned: Sequence[Part], old: Layout, new: Layout) -> None:
        self._planned = planned
        self._old = streams_for(old)
        self._new = streams_for(new)
        self._names = new.index()
        self._layout = new.name

    def of(self, segment: Segment) -> str:
        """The stream of its part's role; from lane j to lane j mod n."""
        role = self._planned[segment.part].role
        lanes = self._new[role]
        return lanes[self._old[role].index(segment.stream) % len(lanes)]

    def of_generated(self, segment: Segment) -> str:
        """The stream of the same name."""
        if segment.stream not in self._names:
            raise Rejected(
                Reason.PLAN_INVALID,
                f"layout '{self._layout}' has no stream '{segment.stream}', in which the plan has generated text",
            )
        return segment.stream


class _Order:
    """Builds the new list, and keeps for every segment what has ended when it begins."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        #: For every old segment its new number, None where it is left out.
        self._number: list[int | None] = []
        #: For every old segment, what has ended when it begins and when it ends.
        self._begins: list[Clock] = []
        self._ends: list[Clock] = []
        #: For every new segment, what has ended when it ends.
        self._said: list[Clock] = []
        #: The newest segment of every stream: of the old ones by the old name, of the new ones by the new.
        self._newest_old: dict[str, int] = {}
        self._newest: dict[str, int] = {}

    def leave_out(self, segment: Segment) -> None:
        """This segment is not said any more."""
        clock = latest([self._before(segment), *[self._ends[d] for d, _ in segment.after]])
        self._add(segment, None, clock, clock)

    def say(self, segment: Segment, stream: str, part: int) -> None:
        """This segment is said in ``stream``, as a piece of ``part``."""
        after: list[Dependency] = []
        inherited: list[Clock] = []
        clocks: list[Clock] = []
        for d, n in segment.after:
            number = self._number[d]
            if number is None:
                inherited.append(self._begins[d])
            else:
                after.append((number, n))
                clocks.append(self._ends[d] if n is None else self._begins[d])
        in_stream = self._said[self._newest[stream]] if stream in self._newest else {}
        known = latest(clocks)
        if not segment.lag:
            known = latest([known, in_stream])  # the stream's own order has no lag
        known = self._require(latest(inherited), known, after)
        known = self._require(self._before(segment), latest([known, in_stream]), after)
        number = len(self.segments)
        self.segments.append(
            Segment(stream, part, segment.begin, segment.end, segment.text, tuple(after), segment.lag, segment.earliest)
        )
        self._newest[stream] = number
        self._said.append({**known, stream: number})
        self._add(segment, number, known, self._said[-1])

    def _before(self, segment: Segment) -> Clock:
        """What had ended when the segment before it in its old stream ended."""
        return self._ends[self._newest_old[segment.stream]] if segment.stream in self._newest_old else {}

    def _require(self, wanted: Clock, known: Clock, after: list[Dependency]) -> Clock:
        """Add edges to ``after`` until all that is ``wanted`` has ended; what is known to have ended then."""
        for stream, number in sorted(wanted.items(), key=lambda entry: -entry[1]):
            if known.get(stream, -1) < number:
                after[:] = [*[edge for edge in after if edge[0] != number], (number, None)]
                known = latest([known, self._said[number]])
        return known

    def _add(self, segment: Segment, number: int | None, begins: Clock, ends: Clock) -> None:
        self._newest_old[segment.stream] = len(self._number)
        self._number.append(number)
        self._begins.append(begins)
        self._ends.append(ends)
