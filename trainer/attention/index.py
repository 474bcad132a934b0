"""Which cells a cell may attend to, as one interval per query over compacted lists of keys.

Cells stand in order (conversation, row). Cell i attends to itself, and to cell j where both are of one conversation,
row(j) < row(i), the stream of i may read the stream of j, and j is not silent. The streams that read alike are a
*class*: a class has one list of keys, ordered as the cells are, and what a query sees of it is an interval [lo, hi):
from where its conversation begins in the list to where its own row does. Seen from a key, the queries that attend to it
are an interval of the class's queries as well: from the next row to the end of the conversation.

The lists of all classes are laid end to end, queries and keys alike. Then lo and hi never decrease along the queries,
seen_lo and seen_hi never along the keys, and a kernel needs to know nothing of conversations, rows, streams or classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

Cells = NDArray[Any] | torch.Tensor  # [S], one number or truth value per cell
Ints = NDArray[Any]
Bools = NDArray[np.bool_]
Class = tuple[Bools | None, Bools | None]  # which cells ask, and which may answer; None: all of them


@dataclass(frozen=True)
class Index:
    """The mask of S cells in K classes, with N keys in all classes together; int32, on the device of the attention.

    Made by :func:`build_index`. A few integers per cell: 3 S + 3 N, and N ≤ S where all streams read alike.
    """

    queries: torch.Tensor  # [S]: the cell of every query, class by class; with one class, the cells in order
    lo: torch.Tensor  # [S]: the first key of every query, as a position in keys
    hi: torch.Tensor  # [S]: the position behind its last; lo == hi where a cell sees itself alone
    keys: torch.Tensor  # [N]: the cell of every key, class by class
    seen_lo: torch.Tensor  # [N]: the first query that attends to a key, as a position in queries
    seen_hi: torch.Tensor  # [N]: the position behind the last
    classes: torch.Tensor  # [K + 1], always on the CPU: where the keys of every class begin; the last is N

    def to(self, device: torch.device | str) -> Self:
        """The same index on another device. ``classes`` stays on the CPU: it says what to launch."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "classes"}
        return type(self)(**moved, classes=self.classes)

    def __len__(self) -> int:
        """The number of cells."""
        return self.queries.shape[0]


def build_index(
    rows: Cells, streams: Cells, docs: Cells, silent: Cells | None = None, visibility: Cells | None = None
) -> Index:
    """The index of one sequence of cells, on the CPU.

    ``rows``, ``streams``, ``docs``: int [S], sorted by (doc, row), in any order within a row. A doc is a conversation;
    doc −1 is padding, which may stand anywhere between conversations and sees only itself. ``silent``: bool [S], cells
    that are keys for no other cell. ``visibility``: bool [C, C], row = who reads; without it every stream reads every
    stream, and ``streams`` is not looked at. The matrix is taken as it is: where its diagonal is false, a stream does
    not see its own earlier rows.

    Raises ValueError for cells out of order, for shapes and types that do not fit, and for streams outside the matrix.
    """
    row, doc = _ints("rows", rows), _ints("docs", docs, like=rows)
    sounding = None if silent is None else ~_bools("silent", silent, like=rows)
    stream = None if visibility is None else _ints("streams", streams, like=rows)
    return _build(row, stream, doc, sounding, visibility, sequences=1)[0]


def build_indices(
    rows: Cells, streams: Cells, docs: Cells, silent: Cells | None = None, visibility: Cells | None = None
) -> list[Index]:
    """The indices of P sequences of S cells each: :func:`build_index` of every line of arrays [P, S], in half the time."""
    given = (rows, streams, docs) if silent is None else (rows, streams, docs, silent)
    row, stream, doc, *still = (_array(values) for values in given)
    if row.ndim != 2 or any(values.shape != row.shape for values in (stream, doc, *still)):
        raise ValueError(f"build_indices takes arrays [P, S], not {[list(_array(values).shape) for values in given]}")
    if not row.size:
        return []
    row, stream, doc, *still = (values.reshape(-1) for values in (row, stream, doc, *still))
    return _build(
        _ints("rows", row),
        None if visibility is None else _ints("streams", stream),
        _ints("docs", doc),
        ~_bools("silent", still[0], like=row) if still else None,
        visibility,
        sequences=len(_array(rows)),
    )


def _build(
    row: Ints, stream: Ints | None, doc: Ints, sounding: Bools | None, visibility: Cells | None, sequences: int
) -> list[Index]:
    """The indices of sequences of the same size that are laid end to end."""
    if not row.size:
        raise ValueError("there are no cells")
    size = row.size // sequences
    row_of, row_bounds, first_of_doc = _rows(row, doc, size)
    first_of_sequence = np.append(row_of[::size], row_bounds.size - 1)
    classes: list[Class] = [(None, sounding)]
    if stream is not None and visibility is not None:
        classes = _classes(stream, visibility, sounding)
    parts: list[list[list[Ints]]] = [[] for _ in range(sequences)]  # of every sequence, class by class
    bounds = [[0] for _ in range(sequences)]
    cells = np.arange(0, row.size, size, dtype=np.int32)  # before every sequence
    queries, keys = np.zeros((2, sequences), np.int32)  # of every sequence, in earlier classes
    for asks, answers in classes:
        query, key = _choose(asks, row_of, row_bounds), _choose(answers, row_of, row_bounds)
        # What holds for one cell of a row, or of a doc, holds for all of them.
        asked, answered = query.before.take(first_of_doc), key.before.take(first_of_doc)
        lo, hi = answered[:-1].repeat(np.diff(asked)), key.before.take(query.rows)
        seen_lo, seen_hi = query.before[1:].take(key.rows), asked[1:].repeat(np.diff(answered))
        # Positions so far are among all sequences, and in this class alone.
        asked, answered = query.before.take(first_of_sequence), key.before.take(first_of_sequence)
        own_queries, own_keys = np.diff(asked), np.diff(answered)
        more_queries, more_keys = queries - asked[:-1], keys - answered[:-1]
        for column, more, own in (
            (query.cells, -cells, own_queries),
            (lo, more_keys, own_queries),
            (hi, more_keys, own_queries),
            (key.cells, -cells, own_keys),
            (seen_lo, more_queries, own_keys),
            (seen_hi, more_queries, own_keys),
        ):
            column += more.repeat(own)  # in place: what is allocated anew is paid for page by page
        own_keys[own_queries == 0] = 0  # nobody of this class is in this sequence: it has no list there
        queries += own_queries
        keys += own_keys
        for number in own_queries.nonzero()[0].tolist():
            of_queries = slice(asked[number], asked[number + 1])
            of_keys = slice(answered[number], answered[number + 1])
            parts[number].append(
                [*(x[of_queries] for x in (query.cells, lo, hi)), *(x[of_keys] for x in (key.cells, seen_lo, seen_hi))]
            )
            bounds[number].append(int(keys[number]))
    return [_index(own, own_bounds) for own, own_bounds in zip(parts, bounds, strict=True)]


def _index(parts: list[list[Ints]], bounds: list[int]) -> Index:
    """The index of one sequence, from the columns of its classes."""
    columns = parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Index(*map(torch.from_numpy, (*columns, np.array(bounds))))


def _rows(row: Ints, doc: Ints, size: int) -> tuple[Ints, Ints, Ints]:
    """The row of every cell, counted through all sequences [S]; where the R rows begin, and the number of cells [R + 1];
    the first row of every conversation, and the number of rows [D + 1].

    Padding cells are alone in both; a new sequence begins after ``size`` cells. Raises ValueError where the cells are out
    of order.
    """
    begins_doc = np.empty(row.size, dtype=bool)
    np.not_equal(doc[1:], doc[:-1], out=begins_doc[1:])
    begins_doc[::size] = True
    padding = doc < 0
    if padding.any():
        if doc.min() < -1:
            raise ValueError("docs must be -1 (padding) or a conversation's number")
        begins_doc |= padding
    first = begins_doc.nonzero()[0]
    begins_row = begins_doc.copy()
    begins_row[1:] |= row[1:] != row[:-1]
    if (~begins_doc[1:] & (row[1:] < row[:-1])).any():
        raise ValueError("the cells of a doc must be sorted by row")
    bounds = np.append(begins_row.nonzero()[0], row.size)
    row_of = np.arange(bounds.size - 1).repeat(np.diff(bounds))
    first_of_doc = np.append(row_of.take(first), bounds.size - 1)

    numbers = doc.take(first)
    first, numbers = first[numbers >= 0], numbers[numbers >= 0]
    if ((numbers[1:] <= numbers[:-1]) & (first[1:] // size == first[:-1] // size)).any():
        raise ValueError("cells must be sorted by doc, and the cells of a doc must stand together")
    return row_of, bounds, first_of_doc


def _classes(stream: Ints, visibility: Cells, sounding: Bools | None) -> list[Class]:
    """The classes that have a cell. Raises ValueError for a matrix that does not fit."""
    matrix = _array(visibility)
    if matrix.dtype != bool or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"visibility must be bool [C, C], not {matrix.dtype} {list(matrix.shape)}")
    if stream.min() < 0 or stream.max() >= len(matrix):
        raise ValueError(f"streams must be from 0 to {len(matrix) - 1}, the streams of visibility")
    reads, class_of = np.unique(matrix, axis=0, return_inverse=True)
    if len(reads) == 1 and reads.all():
        return [(None, sounding)]
    asking = class_of.reshape(-1).astype(np.int16).take(stream)
    classes = []
    for number, readable in enumerate(reads):
        asks = asking == number
        if asks.any():
            answers = readable.take(stream)
            classes.append((asks, answers if sounding is None else answers & sounding))
    return classes


class _Chosen(NamedTuple):
    """Some cells in order, the row of each, and how many of them stand before every row, and in all [R + 1]."""

    cells: Ints
    rows: Ints
    before: Ints


def _choose(chosen: Bools | None, row_of: Ints, bounds: Ints) -> _Chosen:
    """The chosen cells; None: all. ``bounds``: where the rows begin, and the number of cells."""
    if chosen is None:
        return _Chosen(np.arange(row_of.size, dtype=np.int32), row_of, bounds.astype(np.int32))
    cells = chosen.nonzero()[0]
    rows = row_of.take(cells)
    before = np.zeros(bounds.size, np.int32)
    np.cumsum(np.bincount(rows, minlength=bounds.size - 1), out=before[1:])
    return _Chosen(cells.astype(np.int32), rows, before)


def _array(values: Cells) -> NDArray[Any]:
    """A numpy array of anything that holds cells."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _ints(name: str, values: Cells, like: Cells | None = None) -> Ints:
    """Integers [S], as many as there are in ``like``. Raises ValueError."""
    array = _array(values)
    if array.dtype.kind not in "iu" or array.ndim != 1 or (like is not None and len(array) != len(like)):
        wanted = "S" if like is None else len(like)
        raise ValueError(f"{name} must be integers [{wanted}], not {array.dtype} {list(array.shape)}")
    return array


def _bools(name: str, values: Cells, like: Cells) -> Bools:
    """Truth values [S], as many as there are in ``like``. Raises ValueError."""
    array = _array(values)
    if array.dtype != bool or array.shape != (len(like),):
        raise ValueError(f"{name} must be bool [{len(like)}], not {array.dtype} {list(array.shape)}")
    return array
