"""What has ended when a segment of a plan begins, by the plan's order alone: for any token counts, in any schedule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.plan.plan import Dependency, Segment

#: For a stream, the newest of its segments that has ended, and so all before it: a vector clock.
Clock = dict[str, int]


class Order:
    """What has ended when a segment of a plan begins, by the plan's order alone. The plan may grow meanwhile."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        #: For every segment looked at so far, what has ended when it begins and when it ends.
        self._begins: list[Clock] = []
        self._ends: list[Clock] = []
        self._newest: dict[str, int] = {}

    def ended(self, stream: str, after: Sequence[Dependency]) -> Clock:
        """What has ended before a segment begins that comes next in ``stream`` and waits for ``after``."""
        self._look()
        return self._before(stream, after)

    def begins(self, number: int) -> Clock:
        """What has ended before segment ``number`` begins."""
        self._look()
        return self._begins[number]

    def _look(self) -> None:
        for number in range(len(self._ends), len(self._segments)):
            segment = self._segments[number]
            begins = self._before(segment.stream, segment.after)
            self._begins.append(begins)
            self._ends.append({**begins, segment.stream: number})
            self._newest[segment.stream] = number

    def _before(self, stream: str, after: Sequence[Dependency]) -> Clock:
        # Who waits for the first n tokens of a segment knows only what that segment knew.
        clocks = [self._ends[d] if n is None else self._begins[d] for d, n in after]
        if stream in self._newest:
            clocks.append(self._ends[self._newest[stream]])
        return latest(clocks)


def latest(clocks: Iterable[Clock]) -> Clock:
    """What has ended where each of these has been reached."""
    newest: Clock = {}
    for clock in clocks:
        for stream, number in clock.items():
            if newest.get(stream, -1) < number:
                newest[stream] = number
    return newest
