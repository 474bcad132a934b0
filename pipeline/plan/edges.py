"""The order that every rule-based planner shares: the default edges of DESIGN §3.

Nothing that the model writes comes before what it could have reacted to: a thought waits for every input before it, a call
or an answer for the thought before it and for every input since. An edge is left out where an earlier part of the same
stream has it already, for a stream keeps its own order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Sequence

from pipeline.layout import DROP, REJECT, Layout
from pipeline.plan.plan import Dependency, Segment
from pipeline.read.conversation import INPUT_ROLES, Part

#: So many input parts are looked through one by one.
_FEW = 16


class Edges:
    """Builds the segments of one conversation, part by part, and keeps what later parts have to wait for."""

    def __init__(self, spoken: Container[str]) -> None:
        """``spoken``: the streams that the model writes for the world (:func:`spoken_streams`)."""
        self.segments: list[Segment] = []
        self._spoken = spoken
        #: Stream and last segment of every input part so far.
        self._heard: list[tuple[str, int]] = []
        #: For every stream, the numbers of its parts among ``_heard``, and how many parts are in here: those of a short
        #: conversation need not be.
        self._indexed: dict[str, list[int]] = {}
        self._in_index = 0
        #: Last segment of the newest system part.
        self._system: list[int] = []
        #: Last segment of the newest think part, and how many input parts it has waited for.
        self._thought = (-1, 0)
        #: For a stream that the model writes: the newest think part and how many input parts it has waited for.
        self._waited: dict[str, tuple[int, int]] = {}
        #: The last segments of the streams that the model writes for the world.
        self._said: dict[str, int] = {}
        #: For every part that has been added, its last segment.
        self._last_of_part: dict[int, int] = {}

    def waits(self, part: Part, stream: str) -> tuple[Dependency, ...]:
        """What ``part``, which comes next in ``stream``, waits for by default; for a result that is its call."""
        role = part.role
        if role == "result":
            return ((self._last_of_part[part.reply_to], None),) if part.reply_to >= 0 else ()
        if role == "user":
            waits = [*self._system, *self._said.values()]
        elif role == "system":
            waits = [*self._newest_inputs(0, stream), *self._said.values()]
        else:
            thought, heard = self._waited.get(stream, (-1, 0))
            waits = []
            if role != "think":
                if self._thought[0] > thought:
                    waits.append(self._thought[0])
                heard = max(heard, self._thought[1])
            waits += self._newest_inputs(heard, stream)
        return tuple([(d, None) for d in waits])

    def _newest_inputs(self, heard: int, stream: str) -> list[int]:
        """The last segment of every other stream among the input parts from number ``heard`` on."""
        if len(self._heard) - heard > _FEW:
            return self._newest_of_many(heard, stream)
        inputs = self._heard[heard:]
        if len(inputs) == 1:
            return [] if inputs[0][0] == stream else [inputs[0][1]]
        newest = dict(inputs)
        newest.pop(stream, None)
        return list(newest.values())

    def _newest_of_many(self, heard: int, stream: str) -> list[int]:
        """The same, in the same order (of each stream's first part), at a cost that does not grow with the parts."""
        indexed = self._indexed
        for number in range(self._in_index, len(self._heard)):
            indexed.setdefault(self._heard[number][0], []).append(number)
        self._in_index = len(self._heard)
        first_and_newest = sorted(
            (numbers[bisect_left(numbers, heard)], numbers[-1])
            for name, numbers in indexed.items()
            if name != stream and numbers[-1] >= heard
        )
        return [self._heard[newest][1] for _, newest in first_and_newest]

    def add(
        self,
        part: Part,
        index: int,
        stream: str,
        ends: Sequence[int],
        after: Sequence[tuple[Dependency, ...]],
        lag: int = 0,
        paced: bool = False,
    ) -> range:
        """Add the segments of a part that is cut at ``ends`` (code points); ``after[i]`` are the edges of the i-th.

        ``paced``: they are not the default edges, so later parts cannot rely on them.
        """
        segments = self.segments
        first = len(segments)
        begin = 0
        for end, edges in zip(ends, after, strict=True):
            segments.append(Segment(stream, index, begin, end, None, edges, lag))
            begin = end
        last = len(segments) - 1
        self._last_of_part[index] = last
        role = part.role
        if role in INPUT_ROLES:
            self._heard.append((stream, last))
            if role == "system":
                self._system = [last]
        elif role == "think":
            self._think(stream, last, paced)
        elif not paced:
            self._waited[stream] = (self._thought[0], len(self._heard))
        if stream in self._spoken:
            self._said[stream] = last
        return range(first, last + 1)

    def add_thought(self, stream: str, text: str, after: tuple[Dependency, ...]) -> int:
        """Add a generated thought, which what comes later waits for as for a recorded one; its segment's number."""
        number = self.add_note(stream, text, after)
        self._think(stream, number, paced=True)
        return number

    def add_note(self, stream: str, text: str, after: tuple[Dependency, ...]) -> int:
        """Add generated text that nothing waits for; its segment's number."""
        self.segments.append(Segment(stream, -1, 0, 0, text, after))
        return len(self.segments) - 1

    def _think(self, stream: str, last: int, paced: bool) -> None:
        heard = self._waited.get(stream, (-1, 0))[1] if paced else len(self._heard)
        self._thought = self._waited[stream] = (last, heard)


def spoken_streams(layout: Layout) -> frozenset[str]:
    """The names of the streams that the model writes for the world."""
    return frozenset(stream.name for stream in layout.streams if stream.kind == "output")


def streams_for(layout: Layout) -> dict[str, list[str]]:
    """For every role that is kept, the streams that its parts may stand in."""
    return {role: layout.lanes(target) for role, target in layout.roles.items() if target not in (DROP, REJECT)}
