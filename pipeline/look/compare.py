"""Two datasets of the same source, conversation by conversation.

Conversations are the same if file, number and hash of their raw records are; windows of one record are added up. One
shard of each dataset is held at a time, and of every conversation in both only a few numbers are kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from heapq import nlargest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.look.comparison import Against, Apart, Comparison, Delay, Grids, Side, StreamTokens
from pipeline.look.delays import answer_delays, span_table
from pipeline.look.differing import differing
from pipeline.store.dataset import Dataset
from pipeline.store.manifest import Manifest

#: So many of the conversations that differ most are named.
MOST_APART = 5


def compare(a: Dataset, b: Dataset) -> Comparison:
    """Set ``b`` against ``a``.

    Where the two have different tokenizers, rows and tokens of one conversation are not compared with each other.
    Raises :class:`UserError` where no conversation is in both.
    """
    comparable = a.manifest.tokenizer.sha256 == b.manifest.tokenizer.sha256
    read_a, read_b = (lru_cache(maxsize=1)(partial(_read, dataset)) for dataset in (a, b))
    met = [_meet(read_a(one), read_b(other)) for one, other in _overlapping(a.manifest, b.manifest)]
    common = sum(len(pair.a.rows) for pair in met)
    changed = sum(pair.changed for pair in met)
    if not common:
        raise UserError(_nothing_in_common(a, b, changed))
    rows_a, rows_b = np.concatenate([pair.a.rows for pair in met]), np.concatenate([pair.b.rows for pair in met])
    said = rows_a > 0
    fewer, equal, more = _signs(rows_b - rows_a)
    apart = nlargest(MOST_APART, (one for pair in met for one in pair.apart), key=_distance)
    side_a, side_b = _side(a, [pair.a for pair in met]), _side(b, [pair.b for pair in met])
    return Comparison(
        a=side_a,
        b=side_b,
        common=common,
        changed=changed,
        differences=differing(a.manifest, b.manifest),
        comparable=comparable,
        rows_saved=side_a.rows - side_b.rows if comparable else None,
        median_ratio=float(np.median(rows_b[said] / rows_a[said])) if comparable and said.any() else None,
        rows=Against(fewer, equal, more) if comparable else None,
        answer=_total([pair.answer for pair in met]) if comparable else None,
        apart=apart if comparable else [],
    )


class _Conversations(NamedTuple):
    """The conversations of a shard, in the order of their records; windows added up."""

    #: The number of the raw record and its hash. int64 [conversations], uint64 [conversations, 4]
    record: NDArray[np.int64]
    digest: NDArray[np.uint64]
    #: The id of the first grid of each.
    ids: list[str]
    #: [conversations]
    rows: NDArray[np.int64]
    #: [conversations, streams]
    tokens: NDArray[np.int64]
    #: Turns with an answer, and over all of them the rows from the input's first to the answer's first. [conversations]
    turns: NDArray[np.int64]
    waited: NDArray[np.int64]
    #: Which conversation a turn belongs to, and its delays. [turns]
    turn_of: NDArray[np.int64]
    from_end: NDArray[np.int32]
    from_start: NDArray[np.int32]


def _read(dataset: Dataset, number: int) -> _Conversations:
    columns = dataset.shard(number)
    source = columns.source
    records = np.array([entry["record"] for entry in source], np.int64)
    begins = np.diff(records, prepend=-1) != 0
    of_grid = np.cumsum(begins) - 1
    firsts = np.flatnonzero(begins)
    count, streams = len(firsts), len(dataset.layout.streams)

    spans = columns.spans
    cell = np.repeat(of_grid, np.diff(spans.grid_offsets)) * streams + spans.stream
    tokens = np.bincount(cell, np.diff(spans.token_offsets), count * streams).astype(np.int64)
    delays = answer_delays(columns, span_table(columns))
    turn_of = of_grid[delays.grid]
    return _Conversations(
        records[firsts],
        np.frombuffer(b"".join(source[first]["sha256"] for first in firsts.tolist()), np.uint64).reshape(count, 4),
        [columns.ids[first] for first in firsts.tolist()],
        np.bincount(of_grid, spans.num_rows, count).astype(np.int64),
        tokens.reshape(count, streams),
        np.bincount(turn_of, minlength=count),
        np.bincount(turn_of, delays.from_start, count).astype(np.int64),
        turn_of,
        delays.from_end,
        delays.from_start,
    )


def _overlapping(a: Manifest, b: Manifest) -> Iterator[tuple[int, int]]:
    """The numbers of the shards of both that have records of the same file in common, in order."""
    of_file: dict[str, list[int]] = {}
    for number, shard in enumerate(b.shards):
        of_file.setdefault(shard.source.file, []).append(number)
    for number, shard in enumerate(a.shards):
        others = of_file.get(shard.source.file, [])
        first, stop = shard.source.first, shard.source.first + shard.source.records
        begin = bisect_right(others, first, key=lambda other: b.shards[other].source.first)
        for other in others[max(begin - 1, 0) :]:
            source = b.shards[other].source
            if source.first >= stop:
                break
            if source.first + source.records > first:
                yield number, other


class _Half(NamedTuple):
    """What one of two shards holds of the conversations that are in both."""

    #: [conversations]
    rows: NDArray[np.int32]
    #: Over all of them. [streams]
    tokens: NDArray[np.int64]
    #: [turns]
    from_end: NDArray[np.int32]
    from_start: NDArray[np.int32]


class _Met(NamedTuple):
    """Two shards of the same file."""

    a: _Half
    b: _Half
    #: Conversations whose answers begin earlier in b, as early, later.
    answer: Against
    #: Records of which only file and number are the same.
    changed: int
    apart: list[Apart]


def _meet(a: _Conversations, b: _Conversations) -> _Met:
    _, i, j = np.intersect1d(a.record, b.record, assume_unique=True, return_indices=True)
    same = (a.digest[i] == b.digest[j]).all(axis=1)
    i, j = i[same], j[same]
    answered = (a.turns[i] > 0) & (b.turns[j] > 0)
    # Means over turns, compared without dividing.
    later = np.where(answered, b.waited[j] * a.turns[i] - a.waited[i] * b.turns[j], 0)
    fewer, equal, more = _signs(later[answered])
    rows = np.abs(b.rows[j] - a.rows[i])
    order = np.lexsort((-np.abs(later), -rows))[:MOST_APART].tolist()
    apart = [Apart(_grids(a, int(i[k])), _grids(b, int(j[k]))) for k in order if rows[k] or later[k]]
    return _Met(_half(a, i), _half(b, j), Against(fewer, equal, more), int((~same).sum()), apart)


def _half(of: _Conversations, common: NDArray[np.int64]) -> _Half:
    is_common = np.zeros(len(of.record), np.bool_)
    is_common[common] = True
    turns = is_common[of.turn_of]
    return _Half(
        of.rows[common].astype(np.int32), of.tokens[common].sum(axis=0), of.from_end[turns], of.from_start[turns]
    )


def _grids(of: _Conversations, index: int) -> Grids:
    turns = int(of.turns[index])
    return Grids(of.ids[index], int(of.rows[index]), float(of.waited[index] / turns) if turns else None)


def _distance(apart: Apart) -> tuple[float, float]:
    """How far apart a conversation's grids are: in rows, then in the answer's delay."""
    begins = (apart.a.answer_begins, apart.b.answer_begins)
    delay = abs(begins[0] - begins[1]) if begins[0] is not None and begins[1] is not None else 0.0
    return abs(apart.a.rows - apart.b.rows), delay


def _side(dataset: Dataset, halves: Sequence[_Half]) -> Side:
    made = dataset.manifest
    tokens = np.sum([half.tokens for half in halves], axis=0)
    rows = sum(int(half.rows.sum(dtype=np.int64)) for half in halves)
    streams = dataset.layout.streams
    total = int(tokens.sum())
    return Side(
        place=str(dataset.place),
        recipe=made.recipe["name"],
        planner=made.recipe["planner"],
        layout=dataset.layout.name,
        tokenizer=made.tokenizer.name,
        converted=made.counts.converted,
        only_here=made.counts.converted - sum(len(half.rows) for half in halves),
        quarantined=made.counts.quarantined,
        filtered=made.counts.filtered,
        rows=rows,
        tokens=total,
        density=_ratio(total, rows * len(streams)),
        tokens_per_row=_ratio(total, rows),
        streams=[
            StreamTokens(stream.name, stream.kind, int(said), _ratio(int(said), rows))
            for stream, said in zip(streams, tokens, strict=True)
        ],
        delay=_delay(
            np.concatenate([half.from_start for half in halves]), np.concatenate([half.from_end for half in halves])
        ),
    )


def _delay(from_start: NDArray[np.int32], from_end: NDArray[np.int32]) -> Delay | None:
    if not len(from_end):
        return None
    return Delay(len(from_end), float(np.median(from_start)), float(np.median(from_end)), float((from_end <= 0).mean()))


def _signs(values: NDArray[Any]) -> tuple[int, int, int]:
    """How many are below, at and above 0."""
    return int((values < 0).sum()), int((values == 0).sum()), int((values > 0).sum())


def _total(parts: Sequence[Against]) -> Against | None:
    """None where nothing was compared."""
    total = Against(sum(p.fewer for p in parts), sum(p.equal for p in parts), sum(p.more for p in parts))
    return total if total != Against(0, 0, 0) else None


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _nothing_in_common(a: Dataset, b: Dataset, changed: int) -> str:
    files_a, files_b = ([entry.path for entry in dataset.manifest.inputs] for dataset in (a, b))
    what = f"{a.place} and {b.place}: no conversation is in both, so there is nothing to compare"
    if changed:
        return f"{what}; {changed:,} records have the same file and number but other bytes: the input has changed"
    if set(files_a) & set(files_b):
        return f"{what}; they have files in common, but no record that was converted in both"
    return f"{what}; the first was made of {_few(files_a)}, the second of {_few(files_b)}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "nothing"
