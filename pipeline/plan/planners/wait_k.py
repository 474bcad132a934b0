"""``wait-k``: the answer follows the input at a distance of k units.

Answer unit t (from 1) waits for input unit min(k + t - 1, last) of its turn. What is not an answer to a user keeps the
default edges: thoughts, calls, results, and answers that follow results.

The input units of a turn are those of its user parts; where a turn has none (an instruction alone), those of its
system parts. A system text before a user part is context, and is read first.

With ``unit: token`` the answer is one segment that starts when k tokens of the user part have been said. Both streams
then advance one token per row, so every later token keeps the distance. Where several user parts come in a row, the
tokens are counted from the last of them: a plan knows no tokenizer, so it cannot count across parts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from pipeline.layout import Layout
from pipeline.plan.edges import Edges, spoken_streams
from pipeline.plan.plan import Dependency, Segment
from pipeline.plan.segments import sentences
from pipeline.read.conversation import Part


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``k``: units to wait for before the first answer unit; ``full``: all of them."""

    unit: Literal["sentence", "token"] = "sentence"
    k: Annotated[int, msgspec.Meta(ge=0)] | Literal["full"] = 1


class Planner:
    """Paces the answers of a turn by its input."""

    def __init__(self, layout: Layout, options: Options) -> None:
        self._spoken = spoken_streams(layout)
        self._stream = {role: (layout.lanes(target) or [target])[0] for role, target in layout.roles.items()}
        self._by_sentence = options.unit == "sentence"
        self._k = options.k

    def __call__(self, parts: Sequence[Part]) -> list[Segment]:
        edges = Edges(self._spoken)
        pace = _Pace(self._k, self._by_sentence)
        for index, part in enumerate(parts):
            role = part.role
            stream = self._stream[role]
            after = edges.waits(part, stream)
            ends = [len(part.text)]
            if role == "user" or role == "system":
                if self._by_sentence:
                    ends = sentences(part.text) or ends
                added = edges.add(part, index, stream, ends, [after] + [()] * (len(ends) - 1))
                pace.read(role, added, after)
            elif role == "answer" and pace.open:
                if self._by_sentence:
                    ends = sentences(part.text) or ends
                edges.add(part, index, stream, ends, pace.follow(len(ends), after), paced=self._k != "full")
            else:
                if role == "result":
                    pace.close()
                edges.add(part, index, stream, ends, [after])
        return edges.segments


class _Pace:
    """The input units of the newest turn, and how many answer units have followed them."""

    def __init__(self, k: int | str, by_sentence: bool) -> None:
        self._k = k
        self._by_sentence = by_sentence
        self.close()

    def close(self) -> None:
        """Nothing paces what comes now: a new turn has begun, or a result has come, for which all else waits."""
        self._units: dict[str, list[int]] = {"user": [], "system": []}
        self._after: dict[str, tuple[Dependency, ...]] = {}
        self._followed = 0

    @property
    def open(self) -> bool:
        """Whether an answer that comes now is paced by input units."""
        return any(self._units.values())

    def read(self, role: str, segments: range, after: tuple[Dependency, ...]) -> None:
        """The segments of a user or system part have come; the part waited for ``after``."""
        if self._followed:
            self.close()
        self._after.setdefault(role, after)
        units = self._units[role]
        if not self._by_sentence:
            units.clear()  # tokens are counted from the last part
        units.extend(segments)

    def follow(self, count: int, default: tuple[Dependency, ...]) -> list[tuple[Dependency, ...]]:
        """The edges of the next ``count`` answer units: their distance to the input units instead of waiting for those
        in full, and what else ``default`` says (a thought, an earlier result).
        """
        edges: list[tuple[Dependency, ...]] = [()] * count
        role = "user" if self._units["user"] else "system"
        units, followed, k = self._units[role], self._followed, self._k
        last = len(units) - 1
        if k == "full":
            edges[0] = default
            return edges
        if not self._by_sentence:
            if not followed:
                edges[0] = ((units[last], int(k)),)
        else:
            # Unit t (here from 0) waits for unit min(k + t - 1, last). The stream's own order carries an edge on to the
            # units behind it, so none is written for a unit that would wait for the last input unit once more.
            new = max(last + 1 - int(k), followed) + 1
            for t in range(followed, min(followed + count, new)):
                waits = min(int(k) + t - 1, last)
                if waits >= 0:
                    edges[t - followed] = ((units[waits], None),)
            if int(k) == 0 and not followed:
                # It waits for nothing of the turn, only for what the turn itself waits for.
                edges[0] = self._after[role]
        self._followed += count
        for edge in default:
            if not _among(edge[0], units) and not _among(edge[0], self._units["system"]) and edge not in edges[0]:
                edges[0] += (edge,)
        return edges


def _among(segment: int, units: Sequence[int]) -> bool:
    """Whether a segment is one of the units, which ascend: of a long text there are thousands."""
    place = bisect_left(units, segment)
    return place < len(units) and units[place] == segment
