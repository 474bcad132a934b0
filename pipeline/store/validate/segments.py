"""The segments of a shard's plans as arrays, and whether they are its spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.plan.edges import streams_for
from pipeline.plan.plan import Plan
from pipeline.store.validate.report import Code, Found
from pipeline.store.validate.view import Integers, View

Flags = NDArray[np.bool_]


class Segments(NamedTuple):
    """The segments of all plans, one plan after another. Records without a plan have none."""

    #: Texts of generated segments.
    generated: dict[int, str]
    #: ``offsets[r] : offsets[r + 1]`` are the segments of converted record r; the record of every segment.
    offsets: Integers
    record: Integers
    stream: Integers
    part: Integers
    begin: Integers
    end: Integers
    earliest: Integers
    #: Dependencies: the segment, the one that it waits for (both among all), tokens (-1: all), rows (lag).
    of: Integers
    on: Integers
    tokens: Integers
    lag: Integers

    def at(self, view: View, segment: int, expected: object = "", found: object = "") -> Found:
        """The place of a segment."""
        record = int(self.record[segment])
        where = f"segment {segment - self.offsets[record]}"
        return Found(view.shard.plans.path, view.record_ids[record], where, str(expected), str(found))


def flatten(view: View, plans: Sequence[Plan | None]) -> Segments:
    """The segments of the plans of all converted records."""
    number = view.context.layout.index()
    generated: dict[int, str] = {}
    offsets = [0]
    own: list[tuple[int, int, int, int, int]] = []
    edges: list[tuple[int, int, int, int]] = []
    for plan in plans:
        first = len(own)
        for place, segment in enumerate(plan.segments if plan is not None else (), first):
            stream = number.get(segment.stream, -1)
            own.append((stream, segment.part, segment.begin, segment.end, segment.earliest))
            if segment.part < 0:
                generated[place] = segment.text or ""
            for d, n in segment.after:
                edges.append((place, first + d, -1 if n is None else n, segment.lag))
        offsets.append(len(own))
    record = np.repeat(np.arange(len(plans)), np.diff(offsets))
    stream_part_begin_end_earliest = np.array(own, np.int64).reshape(-1, 5).T
    of_on_tokens_lag = np.array(edges, np.int64).reshape(-1, 4).T
    return Segments(generated, np.array(offsets, np.int64), record, *stream_part_begin_end_earliest, *of_on_tokens_lag)


def check_order(view: View, segments: Segments, sound: Flags) -> None:
    """Dependencies point backwards. What breaks this cannot be scheduled: it is no longer ``sound``."""
    forward = segments.on >= segments.of
    view.context.findings.add_each(
        Code.PLAN_ORDER,
        forward,
        lambda e: segments.at(
            view,
            int(segments.of[e]),
            found=f"waits for segment {segments.on[e] - segments.offsets[segments.record[segments.of[e]]]}",
        ),
    )
    sound[segments.record[segments.of[forward]]] = False


def parts_of_records(view: View) -> Integers:
    """How many parts every converted record has, over all its windows."""
    return np.diff(view.part_offsets[view.first_grid])


def included_segments(view: View, segments: Segments, sound: Flags) -> tuple[Flags, Flags]:
    """Which segments have a place in the grids (of truncated records those of the first turns), and which
    records were truncated."""
    record = segments.record
    included = sound[record]
    truncated = np.zeros(len(sound), np.bool_)
    if view.context.recipe.rows.long != "truncate":
        return included, truncated
    parts = parts_of_records(view)
    beyond = np.flatnonzero(included & (segments.part >= parts[record]))
    for r, first in zip(*np.unique(record[beyond], return_index=True), strict=True):
        truncated[r] = True
        included[beyond[first] : segments.offsets[r + 1]] = False
    meta = view.columns.meta
    for r in np.flatnonzero(truncated).tolist():
        grid = int(view.first_grid[r])
        if not _says_truncated(meta[grid]):
            view.context.findings.add(
                Code.META, view.file, view.ids[grid], "truncated", "how much was cut off", "nothing"
            )
    return included, truncated


def _says_truncated(meta: str) -> bool:
    """Whether ``meta`` says how much was cut off, where :func:`pipeline.grid.windows.truncation_key` has put it."""
    try:
        found = msgspec.json.decode(meta, type=dict[str, Any])
    except msgspec.MsgspecError:
        return False
    key = "truncated"
    while key in found:
        note = found[key]
        if isinstance(note, dict) and note.keys() == {"turns_kept", "turns", "rows"}:
            return True
        key = f"_{key}"  # the corpus has said something there
    return False


def check_cut(view: View, segments: Segments, included: Flags, sound: Flags) -> None:
    """Every part is cut without gaps, in order, in one stream of its role."""
    findings, layout = view.context.findings, view.context.layout
    record, parts = segments.record, parts_of_records(view)
    routes = streams_for(layout)
    first_part = view.part_offsets[view.first_grid]
    wrong = included & ((segments.stream < 0) | (segments.part >= parts[record]) | (segments.begin > segments.end))
    chosen = np.flatnonzero(included & ~wrong & (segments.part >= 0))
    flat = first_part[record[chosen]] + segments.part[chosen]
    order = np.argsort(flat, kind="stable")
    chosen, flat = chosen[order], flat[order]
    begins = np.ones(len(flat), np.bool_)
    begins[1:] = flat[1:] != flat[:-1]
    begin, end, stream = segments.begin[chosen], segments.end[chosen], segments.stream[chosen]
    gap = np.where(begins, begin != 0, begin != np.roll(end, 1)) | (~begins & (stream != np.roll(stream, 1)))
    names = [stream.name for stream in layout.streams]
    kinds = [(role, name) for role in routes for name in routes[role]]
    allowed = {(role, names.index(name)) for role, name in kinds}
    roles = view.roles
    gap |= np.array(
        [(roles[p], s) not in allowed for p, s in zip(flat.tolist(), stream.tolist(), strict=True)], np.bool_
    )
    wrong[chosen[gap]] = True
    findings.add_each(
        Code.PLAN_CUT,
        wrong,
        lambda i: segments.at(
            view,
            i,
            found=f"part {segments.part[i]} from {segments.begin[i]} to {segments.end[i]} in "
            f"{names[segments.stream[i]] if segments.stream[i] >= 0 else 'an unknown stream'}",
        ),
    )
    covered = np.zeros(len(roles), np.bool_)
    covered[flat] = True
    owner = np.repeat(np.arange(len(sound)), parts)
    missing = ~covered & sound[owner]
    findings.add_each(
        Code.PLAN_CUT,
        missing,
        lambda p: Found(
            view.shard.plans.path,
            view.record_ids[owner[p]],
            f"part {p - first_part[owner[p]]}",
            expected="a segment",
            found="none",
        ),
    )
    sound[record[wrong]] = False
    sound[owner[missing]] = False


def spans_of(view: View, segments: Segments, included: Flags, sound: Flags) -> Integers:
    """The span of every segment, -1 where it has none.

    Within a stream, segments are said in the plan's order: so the i-th that is not empty is the i-th span.
    """
    layout, spans = view.context.layout, view.spans
    record = segments.record
    included = included & sound[record]
    # The last segment of every text has the end marker, if its stream has one: it is not empty.
    has_end = np.array([stream.end for stream in layout.streams], np.bool_)
    last = segments.part < 0
    recorded = np.flatnonzero(~last & included)
    first_part = view.part_offsets[view.first_grid]
    last_of_part = np.full(len(view.roles), -1, np.int64)
    last_of_part[first_part[record[recorded]] + segments.part[recorded]] = recorded
    last[last_of_part[last_of_part >= 0]] = True
    has_text = segments.end > segments.begin
    for segment, text in segments.generated.items():
        has_text[segment] = text != ""
    occupied = included & (has_text | (last & has_end[segments.stream]))

    span_record = view.record[view.grid]
    offset = first_part[view.record] if len(view) else first_part[:0]
    span_part = np.where(spans.part < 0, -1, spans.part + (view.part_offsets[:-1] - offset)[view.grid])
    wanted = np.bincount(record[occupied], minlength=len(sound))
    found = np.bincount(span_record[view.length > 0], minlength=len(sound))
    for r in np.flatnonzero(sound & (wanted != found)).tolist():
        view.context.findings.add(
            Code.PLAN_SPANS,
            view.shard.plans.path,
            view.record_ids[r],
            expected=f"{wanted[r]} segments that are not empty",
            found=f"{found[r]} spans",
        )
    sound &= wanted == found
    said = np.flatnonzero(occupied & sound[record])
    said = said[np.lexsort((segments.stream[said], record[said]))]
    stored = np.flatnonzero((view.length > 0) & sound[span_record])
    stored = stored[np.lexsort((spans.stream[stored], span_record[stored]))]
    differs = (segments.stream[said] != spans.stream[stored]) | (segments.part[said] != span_part[stored])
    view.context.findings.add_each(
        Code.PLAN_SPANS,
        differs,
        lambda i: segments.at(
            view,
            int(said[i]),
            f"stream {segments.stream[said[i]]}, part {segments.part[said[i]]}",
            f"stream {spans.stream[stored[i]]}, part {span_part[stored[i]]}",
        ),
    )
    sound[record[said[differs]]] = False
    span = np.full(len(record), -1, np.int64)
    span[said] = stored
    span[~sound[record]] = -1
    return span


def check_characters(view: View, segments: Segments, span: Integers) -> None:
    """A span has the characters that its segment says; of generated text, exactly those."""
    data, offsets = view.texts
    characters = np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])[offsets]
    said = np.flatnonzero(span >= 0)
    found = (characters[1:] - characters[:-1])[span[said]]
    expected = (segments.end - segments.begin)[said]
    wrong = (found != expected) & (segments.part[said] >= 0)
    for index in np.flatnonzero(segments.part[said] < 0).tolist():
        text = segments.generated[int(said[index])].encode("utf-8", "replace")
        wrong[index] = view.texts.of(int(span[said[index]])) != text
    view.context.findings.add_each(
        Code.PLAN_TEXT,
        wrong,
        lambda i: segments.at(view, int(said[i]), f"{expected[i]} characters", f"{found[i]}"),
    )
