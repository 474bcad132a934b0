"""``pipeline show``: find a grid, and make lines ready for a terminal or a pager."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec
from rich.text import Text

from pipeline.errors import UserError
from pipeline.look.cells import visible
from pipeline.look.view import GridView, view_of
from pipeline.store.dataset import Dataset
from pipeline.store.manifest import Shard

if TYPE_CHECKING:
    from rich.console import Console


def find_grid(dataset: Dataset, grid_id: str | None = None) -> GridView:
    """The grid with this id; the first where None.

    Raises :class:`UserError` saying why this record has no grid, or which ids there are.
    """
    shards = dataset.manifest.shards
    if grid_id is None:
        if not len(dataset):
            raise UserError(f"{dataset.place}: it has no grids; 'pipeline stats' says what became of the records")
        return view_of(dataset, dataset[0])
    file, _, place = grid_id.rpartition(":")
    record = place.partition("#")[0]
    for number, shard in enumerate(shards):
        source = shard.source
        if source.file != file or not record.isdecimal():
            continue
        if not source.first <= int(record) < source.first + source.records:
            continue
        ids = dataset.shard(number).ids
        if grid_id in ids:
            return view_of(dataset, dataset.shard(number).grid(ids.index(grid_id)))
        others = [i for i in ids if i == f"{file}:{record}" or i.startswith(f"{file}:{record}#")]
        if others:
            raise UserError(f"--id {grid_id}: of this record there are {', '.join(others)}")
        raise UserError(f"--id {grid_id}: {_without_grid(dataset, shard, int(record))}")
    filled = next((number for number, shard in enumerate(shards) if shard.rows), None)
    first = "there are none" if filled is None else f"the first is {dataset.shard(filled).ids[0]}"
    raise UserError(f"--id {grid_id}: no such record; ids are FILE:RECORD, {first}")


def _without_grid(dataset: Dataset, shard: Shard, record: int) -> str:
    """Why a record of this shard has no grid."""
    if shard.quarantine is not None:
        path = dataset.place.path(shard.quarantine.path)
        data = dataset.place.get(shard.quarantine.path)
        if data is None:
            raise UserError(f"{path}: missing; 'pipeline validate' says more")
        for number, row in enumerate(data.splitlines(), 1):
            try:
                line = msgspec.json.decode(row, type=_Rejected)
            except msgspec.DecodeError as error:
                raise UserError(f"{path}: line {number} cannot be read: {error}") from None
            if line.source.record == record:
                return f"is in quarantine: {line.reason}: {visible(line.message)} (line {number} of {path})"
    if shard.counts.filtered:
        return "has no grid: it was filtered, as the recipe's filter says"
    return "has neither a grid nor a line in quarantine; 'pipeline validate' says more"


class _RejectedFrom(msgspec.Struct, frozen=True):
    record: int


class _Rejected(msgspec.Struct, frozen=True):
    """What is said here of a quarantine line."""

    source: _RejectedFrom
    reason: str
    message: str


def as_strings(lines: Iterable[Text], console: Console) -> Iterator[str]:
    """Lines as strings with line breaks, coloured where the console has colours: food for a pager."""
    for line in lines:
        with console.capture() as captured:
            console.print(line, soft_wrap=True)
        yield captured.get()
