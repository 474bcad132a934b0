"""The loader: packs of cells, step after step, the same for every number of ranks and after every interruption.

An epoch is decided by the options, the seed and its number: an order of the conversations, packs of them, an order of the
packs. ``packs_per_step`` of them make a step; the last step is filled up with packs of padding. Rank r of W takes packs r,
r + W, … of every step. So a position is two numbers, epoch and step, and going on from one repeats nothing: the epoch is
packed again, about a microsecond per conversation.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.store.dataset import Dataset
from trainer.data.batch import NO_TARGET, Batch
from trainer.data.cache import Decoded, decode, manifest_hash
from trainer.data.cells import Rules, count_cells, make_cells
from trainer.data.hashing import mix
from trainer.data.options import DataOptions
from trainer.data.order import permutation
from trainer.data.pack import Packs, pack
from trainer.data.prefetch import Prefetched
from trainer.data.streams import Stream, choose

if TYPE_CHECKING:
    from trainer.attention import Index

Integers = NDArray[np.int64]
Split = Literal["train", "validation"]

_log = logging.getLogger(__name__)

#: Cells that are made at once: enough that NumPy's cost per call vanishes, few enough for the processor's cache.
_BLOCK_CELLS = 1 << 16
#: Spans that are looked at at once when conversations are measured.
_BLOCK_SPANS = 1 << 18
#: Blocks that are made before they are asked for.
_AHEAD = 2


class Packing(NamedTuple):
    """An epoch in numbers."""

    conversations: int
    packs: int
    steps: int
    #: Positions that hold a cell.
    cells: int
    #: Share of the packs' positions that do not. Packs that only fill up the last step are not counted.
    padding: float


class _Plan(NamedTuple):
    """Where every conversation of an epoch goes; the items of the packs are rows of the dataset."""

    packs: Packs
    packing: Packing


#: Epoch and number of a step, and the packs of this rank in it and the following ones, as many as are made at once.
_Block = tuple[tuple[int, int], list[list[Batch]]]


class Loader:
    """Packs of one rank. How it is used is in :mod:`trainer.data`.

    Raises UserError for an empty dataset, a split without conversations, conversations that do not fit (unless they are
    to be dropped), streams that are not there, and a world size that does not divide ``packs_per_step``.
    """

    def __init__(
        self,
        dataset: Dataset,
        options: DataOptions,
        *,
        split: Split = "train",
        rank: int = 0,
        world_size: int = 1,
        with_index: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        if options.packs_per_step % world_size:
            valid = [n for n in range(1, options.packs_per_step + 1) if options.packs_per_step % n == 0]
            raise UserError(
                f"data.packs_per_step: {options.packs_per_step} packs cannot be shared by {world_size} processes; "
                f"start {_listed(valid)} processes, or choose a multiple of {world_size}"
            )
        self._where = str(dataset.place)
        if not len(dataset):
            raise UserError(f"{self._where}: holds no conversations, so there is nothing to train on")
        self._options, self._split = options, split
        self._rank, self._world = rank, world_size
        self._with_index = with_index
        streams = choose(dataset, options.streams, options.loss, options.silence_loss)
        rate = options.silence_rate if split == "train" else 1.0
        self._rules = Rules(streams, options.silence, options.virtual_rows, rate)
        #: SHA-256 of the manifest that the packs come from.
        self.manifest_hash = manifest_hash(dataset)
        self._data = decode(dataset, options.cache)
        self._lengths = _measure(self._data, self._rules)
        self._numbers, self.dropped = self._usable()
        self._plans: dict[int, _Plan] = {}
        self._planning = threading.Lock()
        self._epoch = self._position = 0

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The chosen streams: what ``Batch.streams`` counts."""
        return self._rules.streams.streams

    @property
    def visibility(self) -> NDArray[np.bool_] | None:
        """bool [C, C] of the chosen streams, row = who reads; None where every stream reads every stream."""
        return self._rules.streams.visibility

    @property
    def silence_id(self) -> int:
        """The token of silent cells and of padding."""
        return self._rules.streams.silence_id

    @property
    def rows(self) -> int:
        """Rows of the longest conversation of this split, the virtual one included: position ids are below."""
        return int(self._data.num_rows[self._numbers].max()) + self._rules.virtual_rows

    @property
    def longest(self) -> int:
        """Cells of the longest conversation that is trained with: ``cells`` need not be more."""
        return int(self._lengths[self._numbers].max())

    def steps(self, epoch: int) -> int:
        """How many steps an epoch has."""
        return self.packing(epoch).steps

    def packing(self, epoch: int) -> Packing:
        """How an epoch is packed."""
        return self._planned(epoch).packing

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: plain values. Every step that was handed out counts as done."""
        return {
            "manifest": self.manifest_hash,
            "seed": self._options.seed,
            "epoch": self._epoch,
            "position": self._position,
            "split": self._split,
            "options": self._options.decisive(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; for iterators that are made from now on. Any world size that divides the packs will do.

        Raises UserError where dataset, seed or options are not those of the state, naming them.
        """
        own = self.state_dict()
        if state["manifest"] != own["manifest"]:
            raise UserError(
                f"{self._where}: this is not the dataset that the run was started with: its manifest has changed "
                f"(now {own['manifest'][:12]}, then {state['manifest'][:12]}). Go on with the old one, or start a new run"
            )
        then, now = (
            {"split": of["split"], "data.seed": of["seed"]}
            | {f"data.{name}": value for name, value in of["options"].items()}
            for of in (state, own)
        )
        differing = [
            f"{name} is {value!r}, was {then.get(name)!r}" for name, value in now.items() if value != then.get(name)
        ]
        if differing:
            raise UserError(
                f"a run can only go on with the data options it was started with: {'; '.join(differing)}. "
                f"Set them as they were, or start a new run"
            )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])

    def __iter__(self) -> Iterator[list[Batch]]:
        """Steps without end, epoch after epoch, from where the loader stands. Moves the state."""
        with closing(Prefetched(self._endless(self._epoch, self._position), _AHEAD)) as blocks:
            for (epoch, position), steps in blocks:
                for number, step in enumerate(steps, position + 1):
                    last = number == self.steps(epoch)
                    self._epoch, self._position = (epoch + 1, 0) if last else (epoch, number)
                    yield step

    def epoch(self, epoch: int) -> Iterator[list[Batch]]:
        """The steps of one epoch, from its first. Leaves the state alone."""
        with closing(Prefetched(self._blocks(epoch, 0), _AHEAD)) as blocks:
            for _, steps in blocks:
                yield from steps

    def _endless(self, epoch: int, position: int) -> Iterator[_Block]:
        while True:
            yield from self._blocks(epoch, position)
            epoch, position = epoch + 1, 0

    def _blocks(self, epoch: int, position: int) -> Iterator[_Block]:
        plan, options = self._planned(epoch), self._options
        per_rank = options.packs_per_step // self._world
        together = max(1, _BLOCK_CELLS // (options.cells * per_rank))
        while position < plan.packing.steps:
            count = min(together, plan.packing.steps - position)
            first = position * options.packs_per_step + self._rank
            wanted = np.arange(first, first + count * options.packs_per_step, self._world)
            batches = self._make(plan.packs, wanted, epoch)
            yield (epoch, position), [batches[i : i + per_rank] for i in range(0, len(batches), per_rank)]
            position += count

    def _make(self, packs: Packs, wanted: Integers, epoch: int) -> list[Batch]:
        """Packs by their numbers in the epoch; those behind the last are padding."""
        own = packs.take(wanted[wanted < len(packs)])
        cells = make_cells(self._data.take(own.items), self._rules, self._options.seed, epoch)
        bounds = np.concatenate([[0], np.cumsum(cells.lengths)])[own.offsets].tolist()
        counts = np.diff(own.offsets)
        docs = np.repeat(
            (np.arange(len(own.items)) - np.repeat(own.offsets[:-1], counts)).astype(np.int32), cells.lengths
        )
        columns = [
            cells.ids,
            cells.streams,
            cells.positions,
            docs,
            cells.silent,
            cells.targets,
            cells.weights,
            cells.kinds,
        ]
        fills = [self.silence_id, 0, 0, -1, False, NO_TARGET, 0, 0]
        size = self._options.cells
        padded = [_padded(c, bounds, len(wanted), size, f) for c, f in zip(columns, fills, strict=True)]
        indices: Sequence[Index | None] = self._indices(padded) if self._with_index else [None] * len(wanted)
        batches = []
        for number, index in enumerate(indices):
            ids, streams, positions, doc, silent, targets, weights, kinds = (column[number] for column in padded)
            numbers = own.items[slice(*own.offsets[number : number + 2])] if number < len(own) else own.items[:0]
            batches.append(
                Batch(
                    ids,
                    streams,
                    positions,
                    positions,
                    doc,
                    silent,
                    targets,
                    weights,
                    kinds,
                    len(numbers),
                    numbers,
                    index,
                )
            )
        return batches

    def _indices(self, padded: list[NDArray[Any]]) -> Sequence[Index | None]:
        from trainer.attention.index import build_indices

        _, streams, rows, docs, silent, *_ = padded
        return build_indices(rows, streams, docs, silent if self._rules.silence == "skip" else None, self.visibility)

    def _usable(self) -> tuple[Integers, int]:
        """The rows of the dataset that are trained with, and how many are too long. Raises UserError."""
        options = self._options
        if options.validation_share:
            # The hash is mixed again so that the split does not depend on how the hashes were made.
            held_out = mix(self._data.record_hash) < np.uint64(options.validation_share * 2**64)
        else:
            held_out = np.zeros(len(self._data), np.bool_)
        own = held_out if self._split == "validation" else ~held_out
        if not own.any():
            raise UserError(
                f"data.validation_share: {options.validation_share}: of {len(own)} conversations none is left for "
                f"{'validation' if self._split == 'validation' else 'training'}; give another share, or more data"
            )
        too_long = own & (self._lengths > options.cells)
        count = int(too_long.sum())
        if count:
            longest = int(self._lengths[own].max())
            what = f"{count} of {int(own.sum())} conversations do not fit into {options.cells} positions"
            if self._split == "validation":
                what += " when every silent cell counts, as it does in validation"
            if options.too_long == "error":
                raise UserError(
                    f"{self._where}: {what}; the longest needs {longest}. Set data.cells to at least that, "
                    f"convert into shorter conversations (pipeline convert --max-rows … --long window), or leave them out: "
                    f"--set data.too_long=drop"
                )
            _log.warning("%s: %s and are left out; the longest needs %d", self._where, what, longest)
        usable = np.flatnonzero(own & ~too_long & (self._lengths > 0))
        if not usable.size:
            raise UserError(
                f"{self._where}: no conversation fits into {options.cells} positions; set data.cells higher"
            )
        return usable, count

    def _planned(self, epoch: int) -> _Plan:
        """The plan of an epoch. The thread is at the next epoch's before this one is done: both are kept."""
        with self._planning:
            if epoch not in self._plans:
                self._plans = {number: plan for number, plan in self._plans.items() if abs(number - epoch) == 1}
                self._plans[epoch] = self._make_plan(epoch)
            return self._plans[epoch]

    def _make_plan(self, epoch: int) -> _Plan:
        options = self._options
        order = self._numbers[permutation(len(self._numbers), "conversations", options.seed, epoch)]
        packs = pack(self._lengths[order], options.cells)
        packs = Packs(order[packs.items], packs.offsets)
        packs = packs.take(permutation(len(packs), "packs", options.seed, epoch))
        cells = int(self._lengths[order].sum())
        steps = -(-len(packs) // options.packs_per_step)
        packing = Packing(len(order), len(packs), steps, cells, 1 - cells / (len(packs) * options.cells))
        _log.info(
            "%s: epoch %d: %d conversations in %d packs of %d, %d steps, %.2f %% padding",
            self._split, epoch, len(order), len(packs), options.cells, steps, 100 * packing.padding,
        )  # fmt: skip
        return _Plan(packs, packing)


def _padded(column: NDArray[Any], bounds: list[int], packs: int, size: int, fill: float) -> NDArray[Any]:
    """Values of packs that follow each other, as one row of ``size`` for every pack. [packs, size]"""
    made = np.empty((packs, size), column.dtype)
    for number in range(packs):
        begin, end = bounds[number : number + 2] if number < len(bounds) - 1 else (0, 0)
        made[number, : end - begin] = column[begin:end]
        made[number, end - begin :] = fill
    return made


def _measure(data: Decoded, rules: Rules) -> Integers:
    """Cells of every grid. [N]"""
    lengths = np.empty(len(data), np.int64)
    begin = 0
    while begin < len(data):
        end = int(np.searchsorted(data.grid_offsets, data.grid_offsets[begin] + _BLOCK_SPANS, side="right")) - 1
        end = min(max(end, begin + 1), len(data), begin + _BLOCK_SPANS)
        lengths[begin:end] = count_cells(data.take(np.arange(begin, end), tokens=False), rules)
        begin = end
    return lengths


def _listed(numbers: list[int]) -> str:
    """1, 2 or 4"""
    return " or ".join([", ".join(map(str, numbers[:-1])), str(numbers[-1])]) if len(numbers) > 1 else str(numbers[0])
