"""One shard, start to end: raw records in, the bytes of its files out. Pure: no Ray, no clock, no disk.

records ─► conversations ─► plans ─► tokens ─► schedules ─► windows ─► spans ─► Parquet
"""

from __future__ import annotations

import gc
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import msgspec
import numpy as np
import zstandard

from pipeline import schema
from pipeline.errors import Reason, Rejected
from pipeline.grid.assemble import TokenizedPlans, tokenize_plans
from pipeline.grid.ids import TokenIds
from pipeline.grid.schedule import schedule
from pipeline.grid.spans import Spans, build_spans
from pipeline.grid.tokens import Tokenizer
from pipeline.grid.windows import Window, split, truncation_key
from pipeline.plan.edges import streams_for
from pipeline.plan.plan import Plan, Plans, Provenance, Segment, check_plan, replaces
from pipeline.plan.planners import build_planner
from pipeline.plan.relayout import relayout
from pipeline.plan.route import route
from pipeline.plan.turns import turn_starts
from pipeline.read.containers import Record
from pipeline.read.conversation import Part
from pipeline.read.parse import read_conversation
from pipeline.recipe import Recipe
from pipeline.store import quarantine
from pipeline.store.counts import Counts
from pipeline.store.format import schema_with_metadata
from pipeline.store.writer import Rows, write_parquet

_PLAN_ZSTD_LEVEL = 3

#: Rows are stored as int32; so far apart are only the segments of a plan (or a latency) that is a mistake.
_MOST_ROWS = 1 << 30

#: Records that go through all steps together: few enough that what one step leaves is still in the cache for the next.
_BATCH_RECORDS = 512


class ShardFiles(NamedTuple):
    """The bytes of one shard's files."""

    data: bytes
    plans: bytes
    #: Empty where nothing was rejected; then there is no file.
    quarantine: bytes
    counts: Counts


class _Draft(msgspec.Struct, gc=False):
    """A conversation on its way through its shard."""

    record: Record
    sha256: bytes
    parts: list[Part]
    meta: dict[str, Any]
    segments: list[Segment]
    #: Where a teacher's plan comes from.
    teacher: Provenance | None


class _Grid(NamedTuple):
    """One grid to be: which draft it comes from, and which window of it."""

    id: str
    draft: int
    window: Window
    meta: str


class _Batch(NamedTuple):
    """What a handful of records became."""

    spans: Spans
    rows: Rows
    plan_lines: list[bytes]
    rejected: list[tuple[Record, Rejected]]
    counts: Counts


class ShardConverter:
    """Converts shards with one recipe and one tokenizer. Built once per process, called for every shard."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, ids: TokenIds) -> None:
        self._recipe = recipe
        self._layout = recipe.layout
        self._tokenizer = tokenizer
        self._ids = ids
        #: None where a teacher makes the plans: then they are given to :meth:`convert`.
        self._planner = build_planner(recipe.planner, recipe.options, recipe.layout) if recipe.prompt is None else None
        self._needs_output = recipe.needs_output
        self._routes = streams_for(recipe.layout)
        self._written = recipe.layout.written()
        self._stream_number = recipe.layout.index()
        self._stream_has_end = np.array([stream.end for stream in recipe.layout.streams], np.bool_)
        self._schema = schema_with_metadata(recipe.layout.to_dict(), tokenizer.sha256)

    def convert(self, file: str, format_name: str, records: Iterable[Record], plans: Plans | None = None) -> ShardFiles:
        """Convert the records of one shard of ``file``, whose conversations are in the named format.

        Bad records end in quarantine; none costs its neighbours. ``plans`` replace the planner, and are needed where the
        recipe's planner is a teacher.
        """
        records = iter(records)
        with _collector_off():
            batches: list[_Batch] = []
            while batch := list(islice(records, _BATCH_RECORDS)):
                batches.append(self._convert(file, format_name, batch, plans))
            return self._finish(file, batches)

    def _convert(self, file: str, format_name: str, records: Sequence[Record], plans: Plans | None) -> _Batch:
        filtered = 0
        drafts: list[_Draft] = []
        rejected: list[tuple[Record, Rejected]] = []
        dropped: Counter[str] = Counter()
        for record in records:
            try:
                draft = self._draft(file, format_name, record, plans, dropped)
            except Rejected as reason:
                rejected.append((record, reason))
                continue
            if draft is None:
                filtered += 1
            else:
                drafts.append(draft)

        tokenized = tokenize_plans(
            self._tokenizer, [(d.parts, d.segments) for d in drafts], self._stream_number, self._stream_has_end
        )
        starts, grids, plan_lines = self._schedule(file, drafts, tokenized, rejected)
        spans = self._spans(tokenized, starts, grids)
        cut_short = self._recipe.rows.long == "truncate"
        counts = Counts(
            read=len(records),
            converted=len(plan_lines),
            quarantined=len(rejected),
            filtered=filtered,
            truncated=cut_short * sum(grid.window.end_part < len(drafts[grid.draft].parts) for grid in grids),
            rows=len(grids),
            tokens=len(spans.tokens),
            silence_in_content=int(np.count_nonzero(spans.tokens == self._ids.silence_id)),
            dropped_parts=dict(sorted(dropped.items())),
            quarantine_reasons=dict(sorted(Counter(str(reason.reason) for _, reason in rejected).items())),
        )
        return _Batch(spans, _rows(file, drafts, grids), plan_lines, rejected, counts)

    def _finish(self, file: str, batches: Sequence[_Batch]) -> ShardFiles:
        plan_lines = b"".join([line for batch in batches for line in batch.plan_lines])
        return ShardFiles(
            write_parquet([batch.spans for batch in batches], [batch.rows for batch in batches], self._schema),
            zstandard.ZstdCompressor(_PLAN_ZSTD_LEVEL).compress(plan_lines),
            _quarantine(file, [pair for batch in batches for pair in batch.rejected]),
            sum((batch.counts for batch in batches), Counts()),
        )

    def _draft(
        self,
        file: str,
        format_name: str,
        record: Record,
        plans: Plans | None,
        dropped: Counter[str],
    ) -> _Draft | None:
        """Read and plan one record; None if it is filtered."""
        if record.raw is None:
            assert record.reason is not None
            raise Rejected(record.reason, record.message)
        conversation = read_conversation(record.raw, format_name, self._recipe.read.messages_field)
        parts, dropped_here = route(conversation, self._layout, self._needs_output)
        if not self._recipe.filter.keeps(parts):
            return None
        teacher = None
        if plans is None:
            assert self._planner is not None, "a teacher's plans are made before"
            segments = self._planner(parts)
        else:
            plan = plans.by_id.get(f"{file}:{record.number}")
            if plan is None:
                raise Rejected(Reason.PLAN_INVALID, f"--plans holds no plan for {file}:{record.number}")
            if isinstance(plan, Rejected):
                raise plan
            taught = plan.teacher is not None
            segments = relayout(plan.segments, conversation.parts, plans.layout, self._layout, taught)
            check_plan(segments, parts, self._routes, self._written)
            teacher = plan.teacher
        if dropped_here:
            dropped.update(dropped_here)
        if plans is not None and replaces(segments):
            parts = []  # the plan stands in place of the conversation, which only gave the idea for it
        return _Draft(record, hashlib.sha256(record.raw).digest(), parts, conversation.meta, segments, teacher)

    def _schedule(
        self, file: str, drafts: Sequence[_Draft], tokenized: TokenizedPlans, rejected: list[tuple[Record, Rejected]]
    ) -> tuple[list[int], list[_Grid], list[bytes]]:
        """First rows of all segments, the grids, and the plan lines. What cannot be a grid is added to ``rejected``."""
        said = (tokenized.length + tokenized.has_end).tolist()
        offsets = tokenized.offsets
        starts: list[int] = []
        grids: list[_Grid] = []
        plan_lines: list[bytes] = []
        encode = msgspec.json.Encoder().encode
        for number, draft in enumerate(drafts):
            lengths = said[offsets[number] : offsets[number + 1]]
            try:
                if number in tokenized.failed:
                    raise Rejected(Reason.NOT_REVERSIBLE, "the tokenizer does not give back this text byte for byte")
                own = schedule(draft.segments, lengths, self._written)
                windows, notes = self._windows(draft, own, lengths)
            except Rejected as reason:
                rejected.append((draft.record, reason))
                starts += [0] * len(lengths)
                continue
            starts += own
            record_id = f"{file}:{draft.record.number}"
            meta = encode(draft.meta | notes).decode() if notes or draft.meta else "{}"
            for index, window in enumerate(windows):
                grids.append(_Grid(record_id if len(windows) == 1 else f"{record_id}#{index}", number, window, meta))
            plan_lines.append(encode(Plan(record_id, draft.segments, draft.teacher)) + b"\n")
        if plan_lines:
            # All lines are made from one type, whose agreement with the schema is tested; one of each batch is checked
            # here too, and all of them whenever they are read. (Checking each would cost 3 % of the speed.)
            schema.check("plan", msgspec.json.decode(plan_lines[0]), f"plans of {file}")
        return starts, grids, plan_lines

    def _windows(
        self, draft: _Draft, starts: Sequence[int], lengths: Sequence[int]
    ) -> tuple[list[Window], dict[str, Any]]:
        """The windows of one conversation, and what its meta has to say of what was cut off."""
        whole = Window(0, len(draft.segments), 0, len(draft.parts), 0)
        limit = self._recipe.rows.max
        if limit is None:
            if max(starts, default=0) < _MOST_ROWS:
                return [whole], {}
            limit = _MOST_ROWS
        rows = max([start + length for start, length in zip(starts, lengths, strict=True)], default=0)
        if rows <= limit:
            return [whole], {}
        if self._recipe.rows.long == "quarantine":
            raise Rejected(Reason.TOO_LONG, f"{rows} rows; a grid may have {limit}; --long window or truncate keeps it")
        windows = split(draft.parts, draft.segments, starts, lengths, limit)
        if self._recipe.rows.long == "window":
            return list(windows), {}
        first = next(windows)
        turns = turn_starts(draft.parts)
        kept = sum(start < first.end_part for start in turns)
        return [first], {truncation_key(draft.meta): {"turns_kept": kept, "turns": len(turns), "rows": rows}}

    def _spans(self, tokenized: TokenizedPlans, starts: Sequence[int], grids: Sequence[_Grid]) -> Spans:
        offsets = tokenized.offsets
        first = np.array([offsets[g.draft] + g.window.first_segment for g in grids], np.int64)
        count = np.array([g.window.end_segment - g.window.first_segment for g in grids], np.int64)
        grid = np.repeat(np.arange(len(grids)), count)
        segment = np.arange(len(grid)) + np.repeat(first - (np.cumsum(count) - count), count)
        first_row = np.array([g.window.first_row for g in grids], np.int64)
        first_part = np.array([g.window.first_part for g in grids], np.int64)
        part = tokenized.part[segment]
        return build_spans(
            len(grids),
            grid,
            tokenized.stream[segment],
            np.array(starts, np.int64)[segment] - first_row[grid],
            np.where(part >= 0, part - first_part[grid], part),
            tokenized.ids,
            tokenized.begin[segment],
            tokenized.length[segment],
            tokenized.has_end[segment],
            self._ids.end_id,
        )


def _rows(file: str, drafts: Sequence[_Draft], grids: Sequence[_Grid]) -> Rows:
    own = [drafts[grid.draft] for grid in grids]
    parts: list[Part] = []
    reply_to: list[int] = []
    offsets = [0]
    for grid, draft in zip(grids, own, strict=True):
        low, high = grid.window.first_part, grid.window.end_part
        parts += draft.parts if high - low == len(draft.parts) else draft.parts[low:high]
        reply_to += [part.reply_to - low if part.reply_to >= low else -1 for part in draft.parts[low:high]]
        offsets.append(len(parts))
    return Rows(
        ids=[grid.id for grid in grids],
        files=[file] * len(grids),
        records=[draft.record.number for draft in own],
        sha256=[draft.sha256 for draft in own],
        meta=[grid.meta for grid in grids],
        part_offsets=offsets,
        roles=[part.role for part in parts],
        messages=[part.message for part in parts],
        reply_to=reply_to,
    )


def _quarantine(file: str, rejected: Sequence[tuple[Record, Rejected]]) -> bytes:
    """The quarantine file of one shard, in the order of the records."""
    return b"".join(
        quarantine.line(file, record.number, record.offset, record.length, record.raw, record.sha256, why) + b"\n"
        for record, why in sorted(rejected, key=lambda pair: pair[0].number)
    )


@contextmanager
def _collector_off() -> Iterator[None]:
    """Nothing here makes cycles, and the collector would look at a million objects again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
