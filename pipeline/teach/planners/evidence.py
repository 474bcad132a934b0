"""From "the last input segment that it needs" to edges: answers paced by the input of their turn.

To need input unit i is to have read everything up to i: an edge to the newest unit up to i of every input stream that
the answer's stream may read. An edge is left out where an earlier segment of the same stream has it already.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.layout import Layout
from pipeline.plan.edges import Edges
from pipeline.plan.plan import Dependency


class Evidence:
    """The input units of one turn, and who has waited for which of them."""

    def __init__(self, layout: Layout, edges: Edges) -> None:
        """A turn begins, after everything that ``edges`` holds."""
        self._layout = layout
        # An answer that needs nothing of its turn still belongs into it: what the world could hear before is over.
        heard = {stream.name for stream in layout.streams if stream.kind != "internal"}
        newest = {segment.stream: number for number, segment in enumerate(edges.segments) if segment.stream in heard}
        self._opening: list[Dependency] = [(number, None) for number in newest.values()]
        #: Stream and segment of every input unit, and of every thought that was made while they were read.
        self._read: list[tuple[str, int, bool]] = []
        self._units: list[int] = []
        self._own: set[int] = set()
        #: For every number of units, how many entries of ``_read`` were there before the next unit.
        self._entries = [0]
        #: For a stream that is paced, the newest segment of every other stream that it has waited for.
        self._waited: dict[str, dict[str, int]] = {}

    def read(self, stream: str, segment: int) -> None:
        """The next input unit is ``segment``."""
        self._read.append((stream, segment, False))
        self._units.append(segment)
        self._own.add(segment)
        self._entries.append(len(self._read))

    def unit(self, index: int) -> int:
        """The segment of an input unit, counted from 0."""
        return self._units[index]

    def thought(self, stream: str, segment: int, unit: int) -> None:
        """``segment`` was thought when units up to ``unit`` (from 1) had been read; who has read more waits for it too."""
        self._read.insert(self._entries[unit], (stream, segment, True))
        self._own.add(segment)
        for later in range(unit, len(self._entries)):
            self._entries[later] += 1

    def follow(
        self, stream: str, needs: Sequence[int], default: tuple[Dependency, ...]
    ) -> list[tuple[Dependency, ...]]:
        """The edges of the next segments of ``stream``: the i-th needs units up to ``needs[i]`` (0: none).

        ``default`` are the first one's default edges, of which those to this turn's units are left out.
        """
        edges: list[tuple[Dependency, ...]] = []
        first = stream not in self._waited
        waited = self._waited.setdefault(stream, {})
        kept = [edge for edge in default if edge[0] not in self._own]
        for need in needs:
            newest = {
                other: number
                for other, number, thought in self._read[: self._entries[need]]
                if other != stream and (thought or self._layout.sees(stream, other))
            }
            own = [(other, number) for other, number in newest.items() if number > waited.get(other, -1)]
            if first and not own:
                kept += [edge for edge in self._opening if edge not in kept]
            waited.update(own)
            edges.append((*kept, *[(number, None) for _, number in own]))
            kept, first = [], False
        return edges
