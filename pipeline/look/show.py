"""``pipeline show``: find a grid, and make lines ready for a terminal or a pager."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.text import Text

from pipeline.errors import UserError
from pipeline.look.view import GridView, view_of
from pipeline.store.dataset import Dataset

if TYPE_CHECKING:
    from rich.console import Console


def find_grid(dataset: Dataset, grid_id: str | None = None) -> GridView:
    """The grid with this id; the first where None. Raises :class:`UserError` saying which ids there are."""
    shards = dataset.manifest.shards
    if not len(dataset):
        raise UserError(f"{dataset.place}: it has no grids; 'pipeline stats' says what became of the records")
    if grid_id is None:
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
        raise UserError(f"--id {grid_id}: this record has no grid: it was filtered, or is in quarantine")
    filled = next(number for number, shard in enumerate(shards) if shard.rows)
    first = dataset.shard(filled).ids[0]
    raise UserError(f"--id {grid_id}: no such record; ids are FILE:RECORD, the first is {first}")


def as_strings(lines: Iterable[Text], console: Console) -> Iterator[str]:
    """Lines as strings with line breaks, coloured where the console has colours: food for a pager."""
    for line in lines:
        with console.capture() as captured:
            console.print(line, soft_wrap=True)
        yield captured.get()
