"""What a conversion would give, before anything is written: the first records, converted in memory."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from rich.text import Text

from pipeline.convert import ShardConverter, ShardFiles
from pipeline.errors import Reason
from pipeline.grid.ids import token_ids
from pipeline.grid.tokens import Tokenizer
from pipeline.look.cells import visible
from pipeline.look.lines import grid_lines
from pipeline.look.view import GridView, view
from pipeline.plan.plan import Plans
from pipeline.read.containers import Record
from pipeline.read.cut import Cut, cuts, records
from pipeline.read.inputs import InputFile
from pipeline.read.scan import peek
from pipeline.recipe import Recipe
from pipeline.store.dataset import Columns, Silence


class Previewed(NamedTuple):
    """What became of one record."""

    #: ``file:record``
    id: str
    #: Its grid, or one per window; none where the record was rejected or filtered.
    grids: list[GridView]
    #: Why it would go to quarantine, if it would.
    reason: Reason | None = None
    message: str = ""

    @property
    def filtered(self) -> bool:
        """The recipe's filter leaves this record out."""
        return not self.grids and self.reason is None


def preview_lines(
    outcomes: Iterable[Previewed], width: int, before: Callable[[str, int], Iterator[Text]] | None = None
) -> Iterator[Text]:
    """The lines that show what would become of some records; those of grids fit ``width`` columns.

    ``before`` gives lines to show before the grids of a record, by its id.
    """
    for outcome in outcomes:
        if before is not None:
            yield from before(outcome.id, width)
        for grid in outcome.grids:
            yield from grid_lines(grid, width)
        if outcome.reason is not None:
            yield Text(visible(outcome.id), style="bold")
            yield Text(f"quarantine: {outcome.reason}: {visible(outcome.message)}", style="red")
            yield Text()
        elif outcome.filtered:
            yield Text(visible(outcome.id), style="bold")
            yield Text("left out by the recipe's filter", style="yellow")
            yield Text()


def previews(
    files: Sequence[InputFile],
    recipe: Recipe,
    tokenizer: Tokenizer,
    limit: int = 3,
    plan: Callable[[Cut, Sequence[Record]], Plans] | None = None,
) -> Iterator[Previewed]:
    """Convert the first ``limit`` records of ``files``, in order, by the same code as a run; write nothing.

    ``plan``, where given, brings the plans: stored ones, or a teacher's.

    Records are converted one shard at a time, and only as they are asked for.
    Raises :class:`pipeline.errors.UserError` where a file cannot be read.
    """
    ids = token_ids(recipe.layout, tokenizer)
    converter = ShardConverter(recipe, tokenizer, ids)
    left = limit if recipe.read.limit is None else min(limit, recipe.read.limit)
    for file in files:
        if left <= 0:
            return
        for cut in cuts(file, peek(file, recipe.read), recipe.read, left):
            left -= cut.count
            found = list(records(cut, recipe.read))
            plans = plan(cut, found) if plan is not None else None
            made = converter.convert(cut.file, cut.format, found, plans)
            outcomes = _outcomes(made, recipe, tokenizer, ids.silence_id, ids.end_id)
            for record in found:
                record_id = f"{cut.file}:{record.number}"
                yield outcomes.get(record_id, Previewed(record_id, []))


def _outcomes(
    made: ShardFiles, recipe: Recipe, tokenizer: Tokenizer, silence_id: int, end_id: int | None
) -> dict[str, Previewed]:
    """What became of the records of one shard, by id; those that were filtered are missing."""
    streams = recipe.layout.streams
    silence = Silence(np.full(len(streams), silence_id, np.int32), ())
    # One thread: Arrow's own would outlive a short program and end it with an abort.
    table = pq.ParquetFile(io.BytesIO(made.data)).read(use_threads=False)
    columns = Columns(table.select, table.num_rows, tuple(stream.name for stream in streams), silence)
    outcomes: dict[str, Previewed] = {}
    for index, source in enumerate(columns.source):
        record_id = f"{source['file']}:{source['record']}"
        outcome = outcomes.setdefault(record_id, Previewed(record_id, []))
        outcome.grids.append(view(columns.grid(index), streams, tokenizer, end_id))
    for line in made.quarantine.splitlines():
        rejected = json.loads(line)
        outcomes[rejected["id"]] = Previewed(rejected["id"], [], Reason(rejected["reason"]), rejected["message"])
    return outcomes
