"""The rows at which spans start, against their plans.

Two checks that are independent of each other: every dependency by its own inequality (``after``), and the
whole plan scheduled again from the lengths of the stored spans (``schedule``), which also shows that nothing
starts too late.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.errors import Rejected
from pipeline.grid.schedule import schedule
from pipeline.grid.windows import Window, split
from pipeline.plan.plan import Plan, Segment
from pipeline.read.conversation import Part
from pipeline.store.validate.report import Code
from pipeline.store.validate.segments import Flags, Segments
from pipeline.store.validate.view import Integers, View


def check_rows(
    view: View,
    plans: Sequence[Plan | None],
    segments: Segments,
    included: Flags,
    truncated: Flags,
    span: Integers,
    sound: Flags,
) -> None:
    """Every span starts at the row that the schedule gives, and at none that a dependency forbids."""
    record, spans = segments.record, view.spans
    has_span = span >= 0
    lengths = np.zeros(len(record), np.int64)
    lengths[has_span] = view.length[span[has_span]]
    scheduled = np.zeros(len(record), np.int64)
    first_row = np.zeros(len(view), np.int64)
    written = view.context.layout.written()
    counts = np.bincount(record[included], minlength=len(sound)).tolist()
    bounds, all_lengths = segments.offsets.tolist(), lengths.tolist()
    limit = view.context.recipe.rows.max
    for r, plan in enumerate(plans):
        if plan is None or not sound[r]:
            continue
        low, high = bounds[r], bounds[r] + counts[r]
        own, own_lengths = plan.segments[: counts[r]], all_lengths[low:high]
        starts = schedule(own, own_lengths, written)
        scheduled[low:high] = starts
        if truncated[r]:
            first_row[view.first_grid[r]] = min(starts, default=0)
        elif limit is not None or view.first_grid[r + 1] - view.first_grid[r] > 1:
            windows = _windows(view, own, starts, own_lengths, r, limit)
            if windows is None:
                sound[r] = False
            else:
                first_row[view.first_grid[r] : view.first_grid[r + 1]] = windows

    row = scheduled.copy()  # where a segment is, as stored; one without a span is where its order puts it
    row[has_span] = spans.start[span[has_span]] + first_row[view.grid[span[has_span]]]
    known = included & sound[record]
    view.context.findings.add_each(
        Code.SCHEDULE,
        known & (row != scheduled),
        lambda i: view.at_span(
            int(span[i]),
            f"row {scheduled[i] - first_row[view.grid[span[i]]]}",
            f"row {spans.start[span[i]]} (segment {i - segments.offsets[record[i]]} of its plan)",
        ),
    )
    model_writes = np.array([stream.written for stream in view.context.layout.streams], np.bool_)
    of, on, tokens = segments.of, segments.on, segments.tokens
    edges = np.flatnonzero(known[of])
    of, on, tokens, lag = of[edges], on[edges], tokens[edges], segments.lag[edges]
    said = row[on] + np.where(tokens < 0, lengths[on], np.minimum(tokens, lengths[on]))
    horizon = model_writes[segments.stream[of]] & (segments.stream[of] != segments.stream[on])
    may_start = said + horizon + lag
    view.context.findings.add_each(
        Code.AFTER,
        row[of] < may_start,
        lambda e: segments.at(
            view,
            int(of[e]),
            f"row {may_start[e]} or later, because of segment {on[e] - segments.offsets[record[on[e]]]}",
            f"row {row[of[e]]}",
        ),
    )
    view.context.findings.add_each(
        Code.AFTER,
        known & (row < segments.earliest),
        lambda i: segments.at(view, i, f"row {segments.earliest[i]} or later", f"row {row[i]}"),
    )


def _windows(
    view: View,
    segments: Sequence[Segment],
    starts: Sequence[int],
    lengths: Sequence[int],
    r: int,
    limit: int | None,
) -> list[int] | None:
    """The first rows of a record's windows, or None where its grids are not those that its schedule gives."""
    grids = range(int(view.first_grid[r]), int(view.first_grid[r + 1]))
    low, high = int(view.part_offsets[grids.start]), int(view.part_offsets[grids.stop])
    rows = max([start + length for start, length in zip(starts, lengths, strict=True)], default=0)
    windows = [Window(0, len(segments), 0, high - low, 0)]
    if limit is not None and rows > limit:
        parts = [Part(role, "", 0) for role in view.roles[low:high]]  # type: ignore[arg-type]
        try:
            every = split(parts, segments, starts, lengths, limit)
            windows = list(every) if view.context.recipe.rows.long == "window" else [next(every)]
        except Rejected as error:
            view.context.findings.add(Code.WINDOWS, view.file, view.record_ids[r], found=error.message)
            return None
    expected = [(window.first_part, window.end_part) for window in windows]
    found = [(int(view.part_offsets[g]) - low, int(view.part_offsets[g + 1]) - low) for g in grids]
    if expected != found:
        view.context.findings.add(
            Code.WINDOWS, view.file, view.record_ids[r], expected=f"parts {expected}", found=f"parts {found}"
        )
        return None
    return [window.first_row for window in windows]
