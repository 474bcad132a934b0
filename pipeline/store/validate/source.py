"""The grids of one shard against the records that they were made from: every text, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pipeline.errors import Reason, Rejected, UserError
from pipeline.grid.windows import truncation_key
from pipeline.location import redact
from pipeline.plan.route import route
from pipeline.plan.turns import turn_starts
from pipeline.read.containers import Record
from pipeline.read.conversation import Part
from pipeline.read.cut import Cut, cuts, records
from pipeline.read.inputs import InputFile, resolve_inputs
from pipeline.read.parse import read_conversation
from pipeline.read.scan import scan
from pipeline.recipe import Recipe
from pipeline.store.format import MANIFEST
from pipeline.store.manifest import Input, Manifest, Shard
from pipeline.store.validate.report import Code, Findings, Found
from pipeline.store.validate.view import View


class Source(NamedTuple):
    """The records of a shard and how they are read."""

    records: Iterator[Record]
    format: str


class Sources:
    """The inputs that are still there, cut into the same shards. Ask for the shards in their order."""

    def __init__(self, made: Manifest, recipe: Recipe | None, locations: Mapping[str, str], findings: Findings) -> None:
        self._made = made
        self._recipe = recipe
        self._locations = locations
        self._findings = findings
        self._open: dict[str, Iterator[Cut] | None] = {}

    def records(self, shard: Shard) -> Source | None:
        """The records of the next shard, or None where they are not to be had."""
        if self._recipe is None:
            return None
        name = shard.source.file
        if name not in self._open:
            entry = next((entry for entry in self._made.inputs if entry.path == name), None)
            self._open[name] = self._cuts(entry, self._recipe) if entry is not None else None
        following = self._open[name]
        if following is None:
            return None
        try:
            cut = next(following, None)
        except UserError as error:
            self._findings.add(Code.INPUT_MISSING, name, found=str(error))
            cut = None
        else:
            wanted = (shard.source.first, shard.source.records)
            found = (cut.first, cut.count) if cut is not None else None
            if found != wanted:
                self._findings.add(Code.SHARD_RANGE, MANIFEST, where=f"records of {name}", expected=found, found=wanted)
                cut = None
        if cut is None:
            self._open[name] = None
            return None
        return Source(records(cut, self._recipe.read), cut.format)

    def finish(self) -> None:
        """Check the inputs that no shard has read from."""
        for entry in self._made.inputs:
            if self._recipe is not None and entry.path not in self._open:
                self._cuts(entry, self._recipe)

    def _cuts(self, entry: Input, recipe: Recipe) -> Iterator[Cut] | None:
        """The shards of an input that is there and unchanged."""
        location = self._locations.get(entry.path)
        if location is None:
            self._findings.add(Code.INPUT_MISSING, entry.path, found="run.json does not say where it is")
            return None
        try:
            (given,) = resolve_inputs([location])
            file = InputFile(entry.path, given.location, given.size)
            found = scan(file, recipe.read)
        except (UserError, ValueError) as error:
            self._findings.add(Code.INPUT_MISSING, entry.path, found=str(error))
            return None
        if (found.sha256, found.size) != (entry.sha256, entry.bytes):
            self._findings.add(
                Code.INPUT_CHANGED,
                entry.path,
                where=redact(location),
                expected=entry.sha256,
                found=found.sha256,
            )
            return None
        limit = sum(shard.source.records for shard in self._made.shards if shard.source.file == entry.path)
        return cuts(file, found, recipe.read, limit)


def check_source(view: View, source: Source, quarantined: Mapping[int, dict[str, Any]]) -> None:
    """Read the records of a shard again and compare them with its grids and its quarantine."""
    findings, recipe = view.context.findings, view.context.recipe
    needs_output = recipe.needs_output
    texts: list[bytes | None] = [None] * len(view.roles)
    at = {view.source[g]["record"]: r for r, g in enumerate(view.first_grid[:-1].tolist())}
    seen: set[int] = set()
    dropped: dict[str, int] = {}
    for record in source.records:
        number = record.number
        seen.add(number)
        record_id = f"{view.shard.source.file}:{number}"
        line, place = quarantined.get(number), at.get(number)
        try:
            if record.raw is None:
                raise Rejected(record.reason or Reason.CORRUPT_FILE, record.message)
            conversation = read_conversation(record.raw, source.format, recipe.read.messages_field)
            parts, dropped_here = route(conversation, view.context.layout, needs_output)
            outcome = "converted" if recipe.filter.keeps(parts) else "filtered"
        except Rejected as rejected:
            outcome, parts, dropped_here = str(rejected.reason), [], {}
        found = _outcome(line, place)
        if not _agree(outcome, found, line):
            findings.add(Code.OUTCOME, view.file, record_id, expected=outcome, found=found)
        if line is not None:
            digest = record.sha256 if record.raw is None else hashlib.sha256(record.raw).digest()
            if digest is not None and line["source"]["sha256"] != digest.hex():
                path = view.shard.quarantine.path if view.shard.quarantine is not None else view.file
                findings.add(Code.SOURCE_RECORD, path, record_id, expected=digest.hex(), found=line["source"]["sha256"])
        if outcome == "converted" and (line is None or line["reason"] in _AFTER_PLANNING):
            for role, count in dropped_here.items():
                dropped[role] = dropped.get(role, 0) + count
        if place is not None and record.raw is not None and outcome == "converted":
            if not needs_output:
                parts = []  # the plan stands in place of the conversation
            _compare_record(view, place, record.raw, parts, conversation.meta, texts)
            findings.checked(compared=1)
    for number in sorted((at.keys() | quarantined.keys()) - seen):
        findings.add(
            Code.OUTCOME,
            view.file,
            f"{view.shard.source.file}:{number}",
            found="a record that its input does not have",
        )
    if dict(sorted(dropped.items())) != view.shard.counts.dropped_parts:
        findings.add(
            Code.COUNTS,
            view.file,
            where="counts.dropped_parts",
            expected=dict(sorted(dropped.items())),
            found=view.shard.counts.dropped_parts,
        )
    _compare_texts(view, texts)


#: Reasons that only a plan shows, or that none could be made.
_PLANNING = (
    Reason.PLAN_INVALID,
    Reason.TEACHER_REFUSED,
    Reason.TEACHER_TRUNCATED,
    Reason.TEACHER_INVALID,
    Reason.CAUSALITY,
)
#: Reasons that only planning, tokens and rows show: reading the record again finds nothing wrong with it.
_AFTER_PLANNING = (Reason.NOT_REVERSIBLE, Reason.TOO_LONG)


def _outcome(line: dict[str, Any] | None, place: int | None) -> str:
    if line is not None and place is not None:
        return f"converted and {line['reason']}"
    if line is not None:
        return str(line["reason"])
    return "filtered" if place is None else "converted"


def _agree(outcome: str, found: str, line: dict[str, Any] | None) -> bool:
    """Whether what is stored of a record is what reading it again gives, or goes on from there."""
    if outcome == found:
        return True
    return outcome == "converted" and line is not None and found in (*_AFTER_PLANNING, *_PLANNING)


def _compare_record(
    view: View, place: int, raw: bytes, parts: Sequence[Part], meta: dict[str, Any], texts: list[bytes | None]
) -> None:
    """Hash, parts and meta of one record; its texts are put into ``texts`` to be compared all at once."""
    findings = view.context.findings
    digest = hashlib.sha256(raw).digest()
    _, roles, messages, replies = view.columns.parts
    taken = 0
    for grid in range(int(view.first_grid[place]), int(view.first_grid[place + 1])):
        if view.source[grid]["sha256"] != digest:
            findings.add(
                Code.SOURCE_RECORD,
                view.file,
                view.ids[grid],
                expected=digest.hex(),
                found=view.source[grid]["sha256"].hex(),
            )
        low, high = int(view.part_offsets[grid]), int(view.part_offsets[grid + 1])
        own = parts[taken : taken + high - low]
        expected = [(p.role, p.message, p.reply_to - taken if p.reply_to >= taken else -1) for p in own]
        found = list(zip(roles[low:high], messages[low:high].tolist(), replies[low:high].tolist(), strict=True))
        if expected != found:
            wrong = next(
                (i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]),
                len(own),
            )
            findings.add(
                Code.SOURCE_PARTS,
                view.file,
                view.ids[grid],
                f"part {wrong}",
                str(expected[wrong : wrong + 1] or "none"),
                str(found[wrong : wrong + 1] or "none"),
            )
        else:
            texts[low:high] = [part.text.encode() for part in own]
        taken += high - low
    grid = int(view.first_grid[place])
    stored = view.columns.meta[grid]
    notes: dict[str, Any] = {}
    if taken < len(parts):
        if view.context.recipe.rows.long == "truncate":
            key = truncation_key(meta)
            said = msgspec.json.decode(stored).get(key)
            turns = turn_starts(parts)
            kept = sum(start < taken for start in turns)
            if not isinstance(said, dict) or (said.get("turns_kept"), said.get("turns")) != (
                kept,
                len(turns),
            ):
                findings.add(
                    Code.SOURCE_META,
                    view.file,
                    view.ids[grid],
                    "truncated",
                    f"{kept} of {len(turns)} turns",
                    said,
                )
            notes = {key: said}
        else:
            findings.add(Code.SOURCE_PARTS, view.file, view.ids[grid], expected=f"{len(parts)} parts", found=f"{taken}")
    wanted = msgspec.json.encode(meta | notes).decode()
    for grid in range(int(view.first_grid[place]), int(view.first_grid[place + 1])):
        if view.columns.meta[grid] != wanted:
            findings.add(Code.SOURCE_META, view.file, view.ids[grid], expected=wanted, found=view.columns.meta[grid])


def _compare_texts(view: View, texts: Sequence[bytes | None]) -> None:
    """What the spans of every part spell, joined, is its text."""
    data, offsets = view.texts
    order = np.flatnonzero(view.part >= 0)
    order = order[np.lexsort((view.spans.start[order], view.part[order]))]
    size = np.diff(offsets)[order]
    ends = np.cumsum(size)
    total = int(ends[-1]) if len(ends) else 0
    spelled = data[np.repeat(offsets[:-1][order] - (ends - size), size) + np.arange(total)].tobytes()
    part_ends = np.cumsum(np.bincount(view.part[order], weights=size, minlength=len(texts)).astype(np.int64))
    expected_ends = np.cumsum([len(text or b"") for text in texts], dtype=np.int64)
    if None not in texts and np.array_equal(part_ends, expected_ends) and spelled == b"".join(texts):  # type: ignore[arg-type]
        return
    grid = np.repeat(np.arange(len(view)), np.diff(view.part_offsets))
    wrong = np.zeros(len(texts), np.bool_)
    begin = 0
    found: dict[int, str] = {}
    for part, (text, end) in enumerate(zip(texts, part_ends.tolist(), strict=True)):
        if text is not None and spelled[begin:end] != text:
            wrong[part] = True
            found[part] = spelled[begin:end].decode("utf-8", "replace")
        begin = end

    def place(part: int) -> Found:
        text = (texts[part] or b"").decode()
        same = _common(text, found[part])
        return view.at_grid(
            int(grid[part]),
            f"part {part - view.part_offsets[grid[part]]}, character {same}",
            repr(text[same : same + 40]),
            repr(found[part][same : same + 40]),
        )

    view.context.findings.add_each(Code.SOURCE_TEXT, wrong, place)


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
