"""The order that every rule-based planner shares: the default edges of DESIGN §3.

Parts are taken one after another. A *block* is a run of parts that the world wrote (input) or that the model wrote.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.layout import DROP, REJECT, Layout
from pipeline.plan.plan import Dependency, Segment
from pipeline.read.conversation import INPUT_ROLES, Part


class Edges:
    """Builds the segments of one conversation and keeps what later parts have to wait for."""

    def __init__(self, layout: Layout) -> None:
        self.segments: list[Segment] = []
        self._spoken = {stream.name for stream in layout.streams if stream.kind == "output"}
        #: The last segment of the recorded system parts so far.
        self.system: list[int] = []
        #: The last segments of the input parts of the newest input block: what the model has to wait for.
        self.awaited: list[int] = []
        #: The last segment of the newest think part since the newest input block.
        self.thought: list[int] = []
        #: The last segments of the streams that the model writes for the world.
        self.said: dict[str, int] = {}
        #: For every part that has been added, its last segment.
        self.last_of_part: dict[int, int] = {}
        self._input_block = False

    def take(self, part: Part) -> tuple[Dependency, ...]:
        """Take the next part: what it waits for by default; for a result, its call."""
        role = part.role
        is_input = role in INPUT_ROLES
        if is_input and not self._input_block:
            self.awaited = []
            self.thought = []
        self._input_block = is_input
        if role == "result":
            return ((self.last_of_part[part.reply_to], None),) if part.reply_to >= 0 else ()
        if role == "system" or role == "user":
            waits = [*self.system[-1:], *self.said.values()] if role == "user" else [*self.said.values()]
        elif role == "think":
            waits = self.awaited
        else:
            waits = self.thought or self.awaited
        return tuple([(d, None) for d in waits])

    def add(
        self,
        part: Part,
        index: int,
        stream: str,
        ends: Sequence[int],
        after: Sequence[tuple[Dependency, ...]],
        lag: int = 0,
    ) -> range:
        """Add the segments of a part that is cut at ``ends`` (code points); ``after[i]`` are the edges of the i-th."""
        segments = self.segments
        first = len(segments)
        begin = 0
        for end, edges in zip(ends, after, strict=True):
            segments.append(Segment(stream, index, begin, end, None, edges, lag))
            begin = end
        last = len(segments) - 1
        self.last_of_part[index] = last
        role = part.role
        if role == "think":
            self.thought = [last]
        elif role in INPUT_ROLES:
            self.awaited.append(last)
            if role == "system":
                self.system.append(last)
        if stream in self._spoken:
            self.said[stream] = last
        return range(first, last + 1)


def streams_for(layout: Layout) -> dict[str, list[str]]:
    """For every role that is kept, the streams that its parts may stand in."""
    return {role: layout.lanes(target) for role, target in layout.roles.items() if target not in (DROP, REJECT)}
