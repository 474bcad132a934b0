"""``agent``: tools answer in lanes of their own, after the time that they took.

A result comes ``lag`` rows after its call: from the recorded times where the corpus has them, else ``latency``. The
calls of a turn, sorted by (priority, order), are dealt to the lanes in turn; a lane does one thing at a time, so a
result also waits for the lane's previous one: the queue. Everything else has the default edges.

"The calls of a turn" are those that the model made between one input and the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from pipeline.layout import DROP, REJECT, Layout
from pipeline.plan.edges import Edges, spoken_streams
from pipeline.plan.plan import Segment
from pipeline.read.conversation import INPUT_ROLES, Part

Rows = Annotated[int, msgspec.Meta(ge=0)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the ``agent`` planner."""

    #: Rows from the end of a call to its result, where the corpus has no times.
    latency: Rows = 20
    #: Rows that pass in a second, for recorded times.
    rows_per_second: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    #: The longest wait for a recorded result, in rows: an hour of waiting teaches no more than a minute.
    max_latency: Rows = 400
    #: A tool's priority by its name; lower goes first, 0 where none is given.
    priority: dict[str, int] = {}
    #: Lanes for results; the layout's own number where None.
    lanes: Annotated[int, msgspec.Meta(ge=1, le=200)] | None = None


class Planner:
    """Default edges, with results dealt to lanes."""

    def __init__(self, layout: Layout, options: Options) -> None:
        self._layout = layout
        self._spoken = spoken_streams(layout)
        self._options = options
        results = layout.roles["result"]
        self._lanes = layout.lanes(results) if results not in (DROP, REJECT) else []

    def __call__(self, parts: Sequence[Part]) -> list[Segment]:
        edges = Edges(self._spoken)
        queue = self._queue(parts)
        newest: dict[str, int] = {}  # the last segment of the newest result in every lane
        for index in _in_queue_order(parts, queue):
            part = parts[index]
            stream = self._layout.roles[part.role]
            after = edges.waits(part, stream)
            if part.role != "result":
                edges.add(part, index, stream, [len(part.text)], [after])
                continue
            lane = self._lanes[queue.get(part.reply_to, (0, 0))[1] % len(self._lanes)]
            if lane in newest:
                after = (*after, (newest[lane], None))
            call = parts[part.reply_to] if part.reply_to >= 0 else part
            newest[lane] = edges.add(part, index, lane, [len(part.text)], [after], self._latency(call, part))[-1]
        return edges.segments

    def _queue(self, parts: Sequence[Part]) -> dict[int, tuple[int, int]]:
        """For every call, its turn and its place in the turn's queue."""
        turns: list[list[int]] = [[]]
        for index, part in enumerate(parts):
            if part.role == "call":
                turns[-1].append(index)
            elif part.role in INPUT_ROLES and turns[-1]:
                turns.append([])
        priority = self._options.priority
        return {
            index: (turn, place)
            for turn, calls in enumerate(turns)
            for place, index in enumerate(sorted(calls, key=lambda i: (priority.get(parts[i].tool or "", 0), i)))
        }

    def _latency(self, call: Part, result: Part) -> int:
        options = self._options
        if call.seconds is None or result.seconds is None or result is call:
            return options.latency
        rows = round((result.seconds - call.seconds) * options.rows_per_second)
        return min(max(rows, 0), options.max_latency)


def _in_queue_order(parts: Sequence[Part], queue: dict[int, tuple[int, int]]) -> list[int]:
    """Part indices in recorded order, but results that come in a row in the order of the queue."""
    order: list[int] = []
    index = 0
    while index < len(parts):
        run = index
        while run < len(parts) and parts[run].role == "result":
            run += 1
        if run == index:
            order.append(index)
            index += 1
        else:
            order.extend(sorted(range(index, run), key=lambda i: (queue.get(parts[i].reply_to, (-1, 0)), i)))
            index = run
    return order
