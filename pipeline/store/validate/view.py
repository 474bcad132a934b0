"""One shard's grids, with what several checks need: owners of spans, records of grids, bytes of texts."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.grid.spans import Spans
from pipeline.grid.tokens import Tokenizer
from pipeline.layout import Layout
from pipeline.recipe import Recipe
from pipeline.store.dataset import Columns
from pipeline.store.manifest import Manifest, Shard
from pipeline.store.validate.report import Findings, Found

Integers = NDArray[np.int64]


class Context(NamedTuple):
    """What all shards have in common."""

    manifest: Manifest
    layout: Layout
    recipe: Recipe
    tokenizer: Tokenizer
    findings: Findings


class Texts(NamedTuple):
    """The bytes that spans spell, end markers left out."""

    #: All bytes, in the order of the spans.
    data: NDArray[np.uint8]
    #: ``offsets[s] : offsets[s + 1]`` are the bytes of span s. [spans + 1]
    offsets: Integers

    def of(self, span: int) -> bytes:
        """The bytes of one span."""
        return self.data[self.offsets[span] : self.offsets[span + 1]].tobytes()


class View:
    """The grids of one shard."""

    def __init__(self, context: Context, shard: Shard, columns: Columns) -> None:
        self.context = context
        self.shard = shard
        self.columns = columns
        self.spans: Spans = columns.spans
        self.ids = columns.ids
        self.file = shard.path

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def grid(self) -> Integers:
        """The grid of every span."""
        return np.repeat(np.arange(len(self)), np.diff(self.spans.grid_offsets))

    @cached_property
    def length(self) -> Integers:
        """Tokens of every span."""
        return np.diff(self.spans.token_offsets).astype(np.int64)

    @cached_property
    def source(self) -> list[dict[str, Any]]:
        """File, record and hash of every grid."""
        return self.columns.source

    @cached_property
    def part_offsets(self) -> Integers:
        """``part_offsets[g] : part_offsets[g + 1]`` are the parts of grid g. [grids + 1]"""
        return self.columns.parts[0].astype(np.int64)

    @cached_property
    def roles(self) -> list[str]:
        """The role of every part of all grids."""
        return self.columns.parts[1]

    @cached_property
    def record(self) -> Integers:
        """The place of every grid's record among the converted records of the shard. [grids]"""
        numbers = np.array([source["record"] for source in self.source], np.int64)
        if not len(numbers):
            return numbers
        return np.concatenate([[0], np.cumsum(numbers[1:] != numbers[:-1])])

    @cached_property
    def first_grid(self) -> Integers:
        """``first_grid[r] : first_grid[r + 1]`` are the grids of converted record r. [records + 1]"""
        records = int(self.record[-1]) + 1 if len(self) else 0
        return np.searchsorted(self.record, np.arange(records + 1))

    @cached_property
    def record_ids(self) -> list[str]:
        """``file:record`` of every converted record."""
        return [f"{self.source[g]['file']}:{self.source[g]['record']}" for g in self.first_grid[:-1].tolist()]

    @cached_property
    def part(self) -> Integers:
        """The part of every span among the parts of all grids; -1 where it has none."""
        part = self.spans.part.astype(np.int64)
        known = (part >= 0) & (part < np.diff(self.part_offsets)[self.grid])
        return np.where(known, part + self.part_offsets[self.grid], -1)

    @cached_property
    def texts(self) -> Texts:
        """What the spans spell. Tokens that are no content (markers, unknown ids) spell nothing."""
        tokenizer, tokens = self.context.tokenizer, self.spans.tokens
        content = (tokens >= 0) & (tokens < tokenizer.vocab_size)
        end_id = self.context.manifest.tokenizer.end_id
        if end_id is not None:
            content &= tokens != end_id
        sizes = np.zeros(len(tokens) + 1, np.int64)
        said = tokens if content.all() else tokens[content]
        spelling = tokenizer.spell(said)
        sizes[1:][content] = np.diff(spelling.offsets)
        return Texts(spelling.text, np.cumsum(sizes)[self.spans.token_offsets])

    def at_span(self, span: int, expected: Any = "", found: Any = "") -> Found:
        """The place of a span."""
        grid = int(self.grid[span])
        number = span - int(self.spans.grid_offsets[grid])
        return Found(self.file, self.ids[grid], f"span {number}", str(expected), str(found))

    def at_token(self, token: int, expected: Any = "", found: Any = "") -> Found:
        """The place of a token."""
        span = int(np.searchsorted(self.spans.token_offsets, token, side="right")) - 1
        place = self.at_span(span, expected, found)
        return Found(
            place.file,
            place.id,
            f"{place.where}, token {token - int(self.spans.token_offsets[span])}",
            place.expected,
            place.found,
        )

    def at_grid(self, grid: int, where: str = "", expected: Any = "", found: Any = "") -> Found:
        """The place of a grid."""
        return Found(self.file, self.ids[grid], where, str(expected), str(found))
