"""Which cells of a conversation exist, and what they train (DESIGN §9). Pure NumPy, many conversations at once.

Rows are counted as positions are: with virtual rows, row 0 is the virtual one and row r of the grid is r + 1. Below the
last row stands one more that is no cell, only a target: the closing row, silent, or (without virtual rows, and where a
conversation was cut short) a row of no targets.

A *run* is a span, or a tick of a clock. The silent rows between two runs of a stream, before its first and after its last
are a *gap*. Of a gap's g silent cells, the first g - 1 are followed by silence; the last is followed by speech or, in a
stream's last gap, is the closing row. So what must be known of silence is known from spans, and conversations are as long
as their gaps say, before any cell is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.batch import NO_TARGET, Kind
from trainer.data.hashing import Hashes, combine, key
from trainer.data.options import Silence
from trainer.data.streams import ChosenStreams

Integers = NDArray[np.int64]

#: What stands in the dense view where nothing is said, and in the row of no targets.
_SILENT, _NOTHING = -1, -2


@dataclass(frozen=True)
class Rules:
    """How a grid becomes cells. ``rate``: the share of silence → silence cells that is trained."""

    streams: ChosenStreams
    silence: Silence = "skip"
    virtual_rows: bool = True
    rate: float = 1.0


class Conversations(NamedTuple):
    """n conversations with m spans and t tokens, flat; the spans ordered by (conversation, stream, start)."""

    #: Rows of the grid, whether it was cut short, hash of its id. [n]
    num_rows: Integers
    cut_short: NDArray[np.bool_]
    id_hash: Hashes
    #: Conversation, stream (layout number), first row and length of every span. [m]
    conversation: Integers
    stream: Integers
    start: Integers
    length: Integers
    #: The tokens of all spans. [t]; empty where only lengths are wanted.
    tokens: NDArray[np.int32]


class Cells(NamedTuple):
    """The cells of n conversations, ordered by (conversation, row, stream): the columns of a Batch."""

    ids: NDArray[np.int32]
    streams: NDArray[np.int32]
    positions: NDArray[np.int32]
    silent: NDArray[np.bool_]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]
    kinds: NDArray[np.int8]
    #: Cells of every conversation. [n]
    lengths: Integers


class _Silences(NamedTuple):
    """The silent cells of the trained streams. A group is one trained stream of one conversation: n · T groups."""

    #: Conversation, stream (chosen number) and row of the silent cells that are followed by speech.
    starts: tuple[Integers, Integers, Integers]
    #: Silence → silence cells of every group, and how many of them are trained. [n · T]
    all: Integers
    kept: Integers
    #: By gap: its first row, its silence → silence cells, and how many there are in all gaps before it.
    gap_row: Integers
    gap_cells: Integers
    gap_before: Integers


def count_cells(given: Conversations, rules: Rules) -> Integers:
    """How many cells every conversation has, whatever the seed and the epoch. [n]"""
    rows = given.num_rows + rules.virtual_rows
    if rules.silence == "keys":
        return rows * len(rules.streams)
    size = len(given.num_rows)
    chosen = rules.streams.chosen_number[given.stream] >= 0
    said = np.bincount(given.conversation[chosen], weights=given.length[chosen], minlength=size).astype(np.int64)
    for _, every, _ in rules.streams.clocks:
        said += -(-given.num_rows // every)
    silences = _silences(given, rules)
    starts = np.bincount(silences.starts[0], minlength=size)
    return said + starts + silences.kept.reshape(size, len(rules.streams.trained)).sum(axis=1)


def make_cells(given: Conversations, rules: Rules, seed: int, epoch: int) -> Cells:
    """The cells. Memory and time go with rows times streams, a few bytes and nanoseconds each."""
    streams = rules.streams
    width = len(streams)
    rows = given.num_rows + rules.virtual_rows + 1  # with the row that is only a target
    first_cell = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(rows * width, out=first_cell[1:])
    dense = _dense(given, rules, first_cell)

    silences = _silences(given, rules)
    conversation, number, row = _sampled(given, silences, rules, seed, epoch)
    sampled = first_cell[conversation] + row * width + number
    if rules.silence == "skip":
        exists = dense >= 0
        conversation, number, row = silences.starts
        exists[first_cell[conversation] + row * width + number] = True
        exists[sampled] = True
    else:
        exists = np.ones(dense.size, np.bool_)
        target_only = (first_cell[1:] - width)[:, None] + np.arange(width)
        exists[target_only] = False
    place = np.flatnonzero(exists)
    lengths = np.diff(np.searchsorted(place, first_cell))

    own, following = (np.take(dense, at, mode="clip") for at in (place, place + width))
    stream = place.astype(np.int32)
    position = stream // np.int32(width)
    stream -= position * np.int32(width)
    position -= (first_cell[:-1] // width).astype(np.int32).repeat(lengths)

    # In place wherever it goes: what is allocated anew is paid for page by page.
    silent, stays_silent = own < 0, following < 0
    code = stream * np.int32(8)
    code += silent.view(np.int8) * np.int8(2)
    code += stays_silent.view(np.int8)
    code += (following == _NOTHING).view(np.int8) * np.int8(4)
    kind_of, weight_of = _tables(streams)
    kinds, weights = np.take(kind_of, code, mode="clip"), np.take(weight_of, code, mode="clip")
    if rules.rate < 1:
        _weigh_sampled(kinds, weights, place, sampled, lengths, stream, silences, rules)
    fill = np.int32(streams.silence_id - _SILENT)
    np.multiply(silent, fill, out=code)
    own += code
    np.multiply(stays_silent, fill, out=code)
    following += code
    np.copyto(following, np.int32(NO_TARGET), where=kinds == Kind.NONE)
    if rules.silence == "keys":
        silent = np.zeros(len(place), np.bool_)
    return Cells(own, stream, position, silent, following, weights, kinds, lengths)


def _dense(given: Conversations, rules: Rules, first_cell: Integers) -> NDArray[np.int32]:
    """All conversations one below the other, row by row, each with the row that is only a target."""
    streams, width = rules.streams, len(rules.streams)
    dense = np.full(int(first_cell[-1]), _SILENT, np.int32)
    for number, every, tick in streams.clocks:
        count = -(-given.num_rows // every)
        begin = first_cell[:-1] + rules.virtual_rows * width + number
        dense[_progressions(begin, count, every * width)] = tick
    numbers = streams.chosen_number[given.stream]
    begin = first_cell[given.conversation] + (given.start + rules.virtual_rows) * width + numbers
    if len(streams) < streams.layout_size:
        chosen = numbers >= 0
        tokens = given.tokens[np.repeat(chosen, given.length)]
        dense[_progressions(begin[chosen], given.length[chosen], width)] = tokens
    else:
        dense[_progressions(begin, given.length, width)] = given.tokens
    cut = first_cell[1:] if not rules.virtual_rows else first_cell[1:][given.cut_short]
    dense[(cut - width)[:, None] + np.arange(width)] = _NOTHING
    return dense


def _progressions(begin: Integers, count: Integers, step: int) -> Integers:
    """begin, begin + step, …: ``count`` numbers for every element, one after the other."""
    before = np.cumsum(count) - count
    places = np.repeat(begin - before * step, count)
    places += np.arange(0, len(places) * step, step)
    return places


def _tables(streams: ChosenStreams) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Kind and weight of a cell by stream · 8 + silent · 2 + followed by silence + 4 where there is no target. [8 C]"""
    kinds = np.zeros((len(streams), 8), np.int8)
    weights = np.zeros((len(streams), 8), np.float32)
    kinds[:, :4] = (Kind.SPEECH, Kind.STOP, Kind.START, Kind.SILENCE)
    weights[:, :3] = streams.loss[:, None]
    weights[:, 3] = streams.stay_loss
    kinds[weights == 0] = Kind.NONE
    return kinds.reshape(-1), weights.reshape(-1)


def _silences(given: Conversations, rules: Rules) -> _Silences:
    """Where the trained streams are silent."""
    trained = rules.streams.trained
    groups = len(given.num_rows) * len(trained)
    conversation, rank, begin, end = _trained_runs(given, rules)
    group = conversation * len(trained) + rank
    runs = np.bincount(group, minlength=groups)
    first_gap = np.cumsum(runs + 1) - (runs + 1)
    place = np.arange(len(group)) + group  # every group has one gap more than runs
    row = np.zeros(len(group) + groups, np.int64)
    row[place + 1] = end
    until = np.empty_like(row)
    until[place] = begin
    closing = ~given.cut_short if rules.virtual_rows else np.zeros(len(given.num_rows), np.bool_)
    until[first_gap + runs] = np.repeat(given.num_rows + rules.virtual_rows + closing, len(trained))

    spoken_after = until[place] > row[place]
    starts = (conversation[spoken_after], trained[rank[spoken_after]], begin[spoken_after] - 1)
    cells = np.maximum(until - row - 1, 0)
    before = np.cumsum(cells) - cells
    count = np.add.reduceat(cells, first_gap) if groups else np.zeros(0, np.int64)
    kept = np.where(count > 0, np.maximum(1, np.rint(rules.rate * count)), 0).astype(np.int64)
    kept *= np.tile(rules.streams.stay_loss[trained] > 0, len(given.num_rows))
    return _Silences(starts, count, kept, row, cells, before)


def _trained_runs(given: Conversations, rules: Rules) -> tuple[Integers, Integers, Integers, Integers]:
    """Conversation, rank among the trained streams, first row and the row behind the last, of every run; in this order."""
    streams = rules.streams
    rank_of = np.full(len(streams) + 1, -1, np.int64)  # the last stands for streams that were not chosen
    rank_of[streams.trained] = np.arange(len(streams.trained))
    rank = rank_of[streams.chosen_number[given.stream]]
    chosen = rank >= 0
    conversation, rank = given.conversation[chosen], rank[chosen]
    begin = given.start[chosen] + rules.virtual_rows
    end = begin + given.length[chosen]
    ticking = [(int(rank_of[number]), every) for number, every, _ in streams.clocks if rank_of[number] >= 0]
    if not ticking:
        return conversation, rank, begin, end
    parts = [(conversation, rank, begin, end)]
    for clock, every in ticking:
        count = -(-given.num_rows // every)
        of = np.repeat(np.arange(len(count)), count)
        tick = _progressions(np.full(len(count), int(rules.virtual_rows)), count, every)
        parts.append((of, np.full(len(of), clock), tick, tick + 1))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.lexsort((columns[2], columns[1], columns[0]))
    conversation, rank, begin, end = (column[order] for column in columns)
    return conversation, rank, begin, end


def _sampled(
    given: Conversations, silences: _Silences, rules: Rules, seed: int, epoch: int
) -> tuple[Integers, Integers, Integers]:
    """Conversation, stream (chosen number) and row of the silence → silence cells that are trained.

    Of the n cells of a group, k are kept: (i · n + t) // k for i below k, with t below n from the hash. These places are
    different, and over all t every cell is kept exactly k times in n: the weight n / k makes the sum unbiased.
    """
    trained = rules.streams.trained
    stream = np.array(rules.streams.layout_numbers, np.uint64)[trained]
    hashes = combine(given.id_hash ^ key("silence", seed, epoch), np.uint64(0))
    hashes = combine(np.repeat(hashes, len(trained)), np.tile(stream, len(given.num_rows)))
    offset = (hashes % np.maximum(silences.all, 1).astype(np.uint64)).astype(np.int64)
    group = np.repeat(np.arange(len(silences.kept)), silences.kept)
    nth = np.arange(len(group)) - np.repeat(np.cumsum(silences.kept) - silences.kept, silences.kept)
    cell = (nth * silences.all[group] + offset[group]) // silences.kept[group]
    cell += (np.cumsum(silences.all) - silences.all)[group]
    gap = np.searchsorted(silences.gap_before, cell, side="right") - 1
    row = silences.gap_row[gap] + cell - silences.gap_before[gap]
    return group // len(trained), trained[group % len(trained)], row


def _weigh_sampled(
    kinds: NDArray[np.int8],
    weights: NDArray[np.float32],
    place: Integers,
    sampled: Integers,
    lengths: Integers,
    stream: NDArray[np.int32],
    silences: _Silences,
    rules: Rules,
) -> None:
    """Weigh the silence → silence cells that were kept by n / k, and train no others. Changes kinds and weights."""
    trained, width = rules.streams.trained, len(rules.streams)
    more = np.zeros((len(lengths), width), np.float32)
    more[:, trained] = (silences.all / np.maximum(silences.kept, 1)).reshape(len(lengths), len(trained))
    cells = np.flatnonzero(kinds == Kind.SILENCE)
    if rules.silence == "keys":
        kept = np.zeros(place.max(initial=0) + 1, np.bool_)
        kept[sampled] = True
        kept = kept[place[cells]]
        kinds[cells[~kept]] = Kind.NONE
        weights[cells[~kept]] = 0
        cells = cells[kept]
    conversation = np.searchsorted(np.cumsum(lengths), cells, side="right")
    weights[cells] *= more[conversation, stream[cells]]
