"""Opening a dataset and reading its grids. Needs pyarrow, numpy and tokenizers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow.fs import FileType

from pipeline.errors import UserError
from pipeline.grid.spans import Spans
from pipeline.grid.tokens import Tokenizer
from pipeline.layout import Layout
from pipeline.store import manifest
from pipeline.store.format import IDENTITY, MANIFEST, SCHEMA, TOKENIZER
from pipeline.store.manifest import Manifest
from pipeline.store.place import Place

#: Cells that are filled in at once: few enough that the places of their tokens are still in the cache when they are used.
_BLOCK_CELLS = 1 << 18


class Span(NamedTuple):
    """A piece of one stream that is said without a pause."""

    stream: str
    #: First row.
    start: int
    #: int32 token ids; the last may be the end marker.
    tokens: NDArray[np.int32]
    #: Index into the grid's parts; -1 for generated text.
    part: int


class GridPart(NamedTuple):
    """What the corpus recorded: a role, the number of the message, and for a result the part of its call (else -1)."""

    role: str
    message: int
    reply_to: int


class Silence(NamedTuple):
    """What the dense view shows where nothing is said: one token per stream, and the ticks of clock streams."""

    #: Token that stands for silence in every stream. [streams]
    tokens: NDArray[np.int32]
    #: (stream, rows from tick to tick, token)
    clocks: tuple[tuple[int, int, int], ...]

    def fill(self, cells: NDArray[np.int32], first_rows: NDArray[np.int64]) -> None:
        """Make ``cells`` [rows, streams] silent. ``first_rows`` [grids + 1]: where grids begin, for ticks start anew."""
        if (self.tokens == self.tokens[0]).all():
            cells.fill(self.tokens[0])  # several times as fast as row by row
        else:
            cells[:] = self.tokens
        for stream, every, tick in self.clocks:
            for begin, end in pairwise(first_rows.tolist()):
                cells[begin:end:every, stream] = tick


class Columns:
    """The grids of one shard as arrays and offsets: what the trainer reads.

    ``spans`` is a :class:`pipeline.grid.spans.Spans`: no copies of what Parquet gave after decompression. A column is read
    when it is first asked for.
    """

    def __init__(
        self, read: Callable[[list[str]], pa.Table], count: int, streams: tuple[str, ...], silence: Silence
    ) -> None:
        """``read`` gives Parquet columns by their names, all of ``count`` grids."""
        self._read = read
        self._count = count
        self._streams = streams
        self._silence = silence
        #: The newest block of dense grids: its first grid, the one after its last, its cells.
        self._block: tuple[int, int, NDArray[np.int32]] = (0, 0, np.empty((0, len(streams)), np.int32))

    def __len__(self) -> int:
        return self._count

    def _column(self, name: str) -> list[Any]:
        values: list[Any] = self._read([name])[name].to_pylist()
        return values

    @cached_property
    def ids(self) -> list[str]:
        """The id of every grid."""
        return self._column("id")

    @cached_property
    def meta(self) -> list[str]:
        """What the corpus said of every conversation, as JSON text."""
        return self._column("meta")

    @cached_property
    def source(self) -> list[dict[str, Any]]:
        """File, record and hash of every grid's raw record."""
        return self._column("source")

    @cached_property
    def spans(self) -> Spans:
        """The spans of all grids, ordered by (grid, stream, start)."""
        table = self._read(["num_rows", "num_tokens", "spans"])
        column = _chunk(table, "spans")
        span = column.values
        tokens = span.field("tokens")
        return Spans(
            column.offsets.to_numpy(),
            span.field("stream").to_numpy(),
            span.field("start").to_numpy(),
            span.field("part").to_numpy(),
            tokens.offsets.to_numpy(),
            tokens.values.to_numpy(),
            _chunk(table, "num_rows").to_numpy(),
            _chunk(table, "num_tokens").to_numpy(),
        )

    @cached_property
    def parts(self) -> tuple[NDArray[np.int32], list[str], NDArray[np.int32], NDArray[np.int32]]:
        """Offsets of the parts of every grid, then role, message and reply_to of all parts."""
        column = _chunk(self._read(["parts"]), "parts")
        part = column.values
        return (
            column.offsets.to_numpy(),
            part.field("role").to_pylist(),
            part.field("message").to_numpy(),
            part.field("reply_to").to_numpy(),
        )

    def dense(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """All grids one below the other, silence filled in, and the first row of every grid.

        Returns ``(cells [rows of all grids, streams], offsets [grids + 1])``.
        """
        rows = self._first_rows
        cells = np.empty((int(rows[-1]), len(self._streams)), np.int32)
        stop = 0
        while stop < len(self):
            first, stop = stop, self._block_end(stop)
            self._fill(first, stop, cells[rows[first] : rows[stop]])
        return cells, rows

    @cached_property
    def _first_rows(self) -> NDArray[np.int64]:
        """The first row of every grid where all stand one below the other. [grids + 1]"""
        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.spans.num_rows, out=offsets[1:])
        return offsets

    @cached_property
    def _first_row_list(self) -> list[int]:
        """The same as Python's own numbers: a grid at a time, they cost a tenth of NumPy's."""
        rows: list[int] = self._first_rows.tolist()
        return rows

    def _block_end(self, first: int) -> int:
        """The end of the block of grids that begins with ``first``."""
        rows = self._first_rows
        wanted = rows[first] + _BLOCK_CELLS // len(self._streams)
        return max(first + 1, int(np.searchsorted(rows, wanted, side="right")) - 1)

    def _fill(self, first: int, stop: int, cells: NDArray[np.int32]) -> None:
        """Write the grids from ``first`` up to ``stop``, one below the other, into ``cells`` [their rows, streams]."""
        spans, rows = self.spans, self._first_rows[first : stop + 1]
        rows = rows - rows[0]
        self._silence.fill(cells, rows)
        own = slice(*spans.grid_offsets[[first, stop]].tolist())
        offsets = spans.token_offsets[own.start : own.stop + 1]
        spans_per_grid = np.diff(spans.grid_offsets[first : stop + 1])
        _say(
            cells,
            spans.stream[own],
            spans.start[own] + np.repeat(rows[:-1], spans_per_grid),
            offsets - offsets[0],
            spans.tokens[offsets[0] : offsets[-1]],
        )

    def dense_grid(self, index: int) -> NDArray[np.int32]:
        """One grid with silence filled in; grids that are read in order are filled in by the block. [rows, streams]"""
        rows = self._first_row_list
        first, stop, cells = self._block
        if not first <= index < stop:
            first, stop = index, self._block_end(index)
            cells = np.empty((rows[stop] - rows[first], len(self._streams)), np.int32)
            self._fill(first, stop, cells)
            self._block = (first, stop, cells)
        begin = rows[first]
        return cells[rows[index] - begin : rows[index + 1] - begin].copy()

    def grid(self, index: int) -> Grid:
        """One grid."""
        return Grid(self, index, self._streams)


class Grid:
    """One conversation, or one window of it."""

    __slots__ = ("_columns", "_index", "_streams")

    def __init__(self, columns: Columns, index: int, streams: tuple[str, ...]) -> None:
        self._columns = columns
        self._index = index
        self._streams = streams

    def __repr__(self) -> str:
        return f"<Grid {self.id}: {self.num_rows} rows, {self.num_tokens} tokens>"

    @property
    def id(self) -> str:
        """``file:record``, with ``#window`` for windows."""
        return self._columns.ids[self._index]

    @property
    def num_rows(self) -> int:
        """Timesteps."""
        return int(self._columns.spans.num_rows[self._index])

    @property
    def num_tokens(self) -> int:
        """Cells that are not silent."""
        return int(self._columns.spans.num_tokens[self._index])

    @property
    def meta(self) -> str:
        """What the corpus said of the conversation, as JSON text."""
        return self._columns.meta[self._index]

    @property
    def source(self) -> dict[str, Any]:
        """File, record and hash of the raw record."""
        return self._columns.source[self._index]

    @property
    def spans(self) -> list[Span]:
        """The spans, ordered by (stream, start)."""
        spans = self._columns.spans
        low, high = int(spans.grid_offsets[self._index]), int(spans.grid_offsets[self._index + 1])
        return [
            Span(
                self._streams[spans.stream[i]],
                int(spans.start[i]),
                spans.tokens[spans.token_offsets[i] : spans.token_offsets[i + 1]],
                int(spans.part[i]),
            )
            for i in range(low, high)
        ]

    @property
    def parts(self) -> list[GridPart]:
        """What the corpus recorded, in order."""
        offsets, roles, messages, replies = self._columns.parts
        low, high = int(offsets[self._index]), int(offsets[self._index + 1])
        return [GridPart(roles[i], int(messages[i]), int(replies[i])) for i in range(low, high)]

    def dense(self) -> NDArray[np.int32]:
        """The grid with silence filled in. int32 [rows, streams]"""
        return self._columns.dense_grid(self._index)


def _say(
    cells: NDArray[np.int32],
    stream: NDArray[Any],
    first_row: NDArray[Any],
    token_offsets: NDArray[Any],
    tokens: NDArray[np.int32],
) -> None:
    """Write spans into ``cells`` [rows, streams]."""
    streams = cells.shape[1]
    # Token t of a span stands at (first row + t) * streams + stream: a step of `streams` from token to token.
    base = first_row.astype(np.int64) * streams + stream - token_offsets[:-1].astype(np.int64) * streams
    places = np.repeat(base, np.diff(token_offsets))
    places += np.arange(0, len(tokens) * streams, streams)
    cells.reshape(-1)[places] = tokens


class Dataset:
    """A finished dataset. ``len(ds)``, ``ds[0]`` and iteration give grids; ``ds.columns()`` gives whole shards."""

    def __init__(self, place: Place, made: Manifest, silence_id: int | None = None) -> None:
        self.place = place
        self.manifest = made
        self.layout: Layout = Layout.from_dict(made.layout)
        self._silence_id = made.tokenizer.silence_id if silence_id is None else silence_id
        self._cached: tuple[int, Columns] | None = None

    def __len__(self) -> int:
        return self.manifest.counts.rows

    def __repr__(self) -> str:
        return f"<Dataset {self.place}: {len(self)} grids, {self.manifest.counts.tokens} tokens, {self.layout.name}>"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The content tokenizer."""
        data = self.place.get(TOKENIZER)
        if data is None:
            raise UserError(f"{self.place.path(TOKENIZER)}: missing")
        entry = self.manifest.tokenizer
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise UserError(f"{self.place.path(TOKENIZER)}: damaged: not the tokenizer that the manifest names")
        return Tokenizer(entry.name, entry.source_sha256, data.decode())

    @cached_property
    def silence(self) -> Silence:
        """What the dense view shows where nothing is said."""
        streams = self.layout.streams
        clocks = tuple(
            (number, stream.clock.every, self.manifest.tokenizer.tick_ids[stream.name])
            for number, stream in enumerate(streams)
            if stream.clock is not None
        )
        return Silence(np.full(len(streams), self._silence_id, np.int32), clocks)

    def shard(self, number: int) -> Columns:
        """One shard; what is used of it is read when it is used."""
        shard = self.manifest.shards[number]

        def read(columns: list[str]) -> pa.Table:
            try:
                with self.place.open(shard.path) as source, pq.ParquetFile(source, pre_buffer=False) as file:
                    table = file.read(columns=columns, use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise self._unreadable(shard.path, str(error)) from None
            if table.num_rows != shard.rows:
                raise self._unreadable(shard.path, f"{table.num_rows} grids, the manifest says {shard.rows}")
            return table

        return Columns(read, shard.rows, tuple(stream.name for stream in self.layout.streams), self.silence)

    def _unreadable(self, path: str, why: str) -> UserError:
        return UserError(f"{self.place.path(path)}: cannot be read: {why}; 'pipeline validate' says more")

    def columns(self) -> Iterator[Columns]:
        """Every shard's spans as arrays and offsets, in order; what a trainer needs."""
        for number in range(len(self.manifest.shards)):
            yield self.shard(number)

    def __iter__(self) -> Iterator[Grid]:
        for number in range(len(self.manifest.shards)):
            columns = self.shard(number)
            for index in range(len(columns)):
                yield columns.grid(index)

    def __getitem__(self, index: int) -> Grid:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"grid {index} of {len(self)}")
        for number, shard in enumerate(self.manifest.shards):
            if index < shard.rows:
                if self._cached is None or self._cached[0] != number:
                    self._cached = (number, self.shard(number))
                return self._cached[1].grid(index)
            index -= shard.rows
        raise AssertionError("the manifest's counts are checked when it is opened")


def open_dataset(location: str, silence_id: int | None = None) -> Dataset:
    """Open the dataset at a path or URL and check its manifest.

    ``silence_id`` overrides the token that the dense view shows where nothing is said.
    Raises :class:`pipeline.errors.UserError` where there is no dataset, or where the manifest contradicts itself.
    """
    place = Place(str(location))
    made = manifest.decode(read_manifest(place), place.path(MANIFEST))
    if made.counts.rows != sum(shard.rows for shard in made.shards):
        raise UserError(f"{place.path(MANIFEST)}: the rows of the shards do not add up to counts.rows")
    return Dataset(place, made, silence_id)


def read_manifest(place: Place) -> bytes:
    """The manifest as it is stored. Raises UserError, saying what is there instead and what to do, where there is none."""
    data = place.get(MANIFEST)
    if data is not None:
        return data
    kind = place.kind()
    if kind == FileType.NotFound:
        what = "it does not exist"
    elif place.get(IDENTITY) is not None:
        what = f"it is an unfinished run, without {MANIFEST} yet: it goes on with its own command"
    else:
        what = "it is a file" if kind == FileType.File else f"there is no {MANIFEST} in it"
        what += f". A corpus must be converted first: pipeline convert --input {place} --out DIR"
    raise UserError(f"{place}: no dataset: {what}")


def _chunk(table: pa.Table, name: str) -> Any:
    """A column as one array."""
    chunks = table[name].chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays([pa.array([], SCHEMA.field(name).type), *chunks])
