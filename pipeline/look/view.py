"""What is shown of one grid, wherever it comes from: a dataset, or a conversion that writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.grid.tokens import Tokenizer
from pipeline.layout import Stream
from pipeline.look.cells import JOINER, Cell, cells
from pipeline.store.dataset import Dataset, Grid, Span


class Placed(NamedTuple):
    """A cell in its lane."""

    row: int
    #: One column before the body: a space, or the joiner where this token continues the word before it.
    lead: str
    cell: Cell


class GridView(NamedTuple):
    """One grid and what it takes to read it."""

    id: str
    #: The streams of the layout, in order; all of them, silent ones included.
    streams: tuple[Stream, ...]
    num_rows: int
    #: Cells that are not silent.
    num_tokens: int
    #: Ordered by (stream, start).
    spans: list[Span]
    tokenizer: Tokenizer
    #: The token that ends a message, if the layout has one.
    end_id: int | None

    @property
    def density(self) -> float:
        """The share of cells that are not silent; 0 where there are no cells."""
        return self.num_tokens / max(1, self.num_rows * len(self.streams))

    def lanes(self) -> list[Iterator[Placed]]:
        """For every stream its tokens, first row to last, made ready as they are asked for."""
        own: dict[str, list[Span]] = {stream.name: [] for stream in self.streams}
        for span in self.spans:
            own[span.stream].append(span)
        return [self._lane(spans) for spans in own.values()]

    def _lane(self, spans: list[Span]) -> Iterator[Placed]:
        next_row, closed = -1, True
        for span in spans:
            for row, cell in enumerate(cells(self.tokenizer, span.tokens, self.end_id), span.start):
                goes_on = row == next_row and not closed and not cell.apart
                yield Placed(row, JOINER if goes_on else " ", cell)
                next_row, closed = row + 1, cell.closed


def view_of(dataset: Dataset, grid: Grid) -> GridView:
    """The view of a stored grid."""
    return view(grid, dataset.layout.streams, dataset.tokenizer, dataset.manifest.tokenizer.end_id)


def view(grid: Grid, streams: tuple[Stream, ...], tokenizer: Tokenizer, end_id: int | None) -> GridView:
    """The view of any grid; ``streams`` are those of its layout."""
    return GridView(grid.id, streams, grid.num_rows, grid.num_tokens, grid.spans, tokenizer, end_id)
