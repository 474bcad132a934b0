"""Records that are the rows of a Parquet file, as canonical JSON.

Canonical: UTF-8, no spaces, columns in the order of the file, nested fields in the order of their type.
Timestamps, dates and times are ISO 8601 with as many digits as the column has; durations are integers in the
column's unit; decimals are strings; NaN and infinities are null; binary is its text if it is UTF-8, otherwise
base64; maps are lists of [key, value]. A string that is not UTF-8 is copied as it is, so that the record is
quarantined as invalid Unicode.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import Reason
from pipeline.read.containers.dense import dense_bytes, dense_columns, pieces
from pipeline.read.containers.record import CorruptStream, Record, oversized

#: Rows decoded at once, at most; fewer where the file's metadata says that rows are large.
BATCH_ROWS = 256
BATCH_BYTES = 8 << 20

#: Rows read at once where texts are still in dictionaries: each batch brings its own, so there should be few.
DENSE_ROWS = 8192

#: Bytes read from the file at once, per column.
READ_BUFFER = 1 << 20

Convert = Callable[[Any], Any]

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}


class RowGroup(msgspec.Struct, frozen=True):
    """Rows and uncompressed bytes of a row group."""

    rows: int
    bytes: int


def open_parquet(stream: BinaryIO) -> pq.ParquetFile:
    """Open a seekable stream. Raises CorruptStream if it is not a Parquet file."""
    try:
        # The file's own page checksums are the only way to notice a flipped bit in a text column.
        # With a buffer, pages are read one by one; without, whole column chunks of a row group are held.
        def opened(**more: Any) -> pq.ParquetFile:
            return pq.ParquetFile(
                stream, buffer_size=READ_BUFFER, pre_buffer=False, page_checksum_verification=True, **more
            )

        file = opened()
        dense = sorted({path for group in range(file.num_row_groups) for path in dense_columns(file, group)})
        return opened(metadata=file.metadata, read_dictionary=dense) if dense else file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptStream(f"not a readable Parquet file: {error}") from None


def row_groups(file: pq.ParquetFile) -> list[RowGroup]:
    """The row groups of a file, in order, their bytes as the metadata has them."""
    metadata = file.metadata
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return [RowGroup(group.num_rows, max(0, group.total_byte_size)) for group in groups]


def decoded_groups(file: pq.ParquetFile) -> list[RowGroup]:
    """The row groups of a file, in order, their bytes once texts that rows share stand in every one of them."""
    groups = row_groups(file)
    for number, group in enumerate(groups):
        dense = dense_columns(file, number)
        if dense:
            try:
                more = dense_bytes(file, number, list(dense)) - sum(dense.values())
            except (pa.ArrowException, OSError, ValueError):
                continue  # whoever reads the group reports what is wrong with it
            groups[number] = RowGroup(group.rows, group.bytes + max(0, more))
    return groups


def read_rows(file: pq.ParquetFile, limit: int, first: int = 0, count: int | None = None) -> Iterator[Record]:
    """Rows ``first`` to ``first + count`` as records of at most ``limit`` bytes.

    Row groups are decoded in batches, so memory follows the batch; rows of the group before ``first`` are
    decoded and thrown away. Where a row group is broken, each of its remaining rows is a record with reason
    ``corrupt_file``.
    """
    groups = row_groups(file)
    last = sum(group.rows for group in groups)
    if count is not None:
        last = min(last, first + count)
    begin = 0
    for index, group in enumerate(groups):
        end = begin + group.rows
        if begin < last and end > first:
            yield from _read_group(file, index, group, begin, max(first, begin), min(last, end), limit)
        begin = end


def _read_group(
    file: pq.ParquetFile, index: int, group: RowGroup, begin: int, first: int, last: int, limit: int
) -> Iterator[Record]:
    dense = bool(dense_columns(file, index))
    most = DENSE_ROWS if dense else BATCH_ROWS
    size = max(1, min(most, BATCH_BYTES // max(1, group.bytes // max(1, group.rows))))
    row = begin
    try:
        for batch in file.iter_batches(size, row_groups=[index], use_threads=False):
            if row + len(batch) > first:
                skip = max(0, first - row)
                wanted = batch.slice(skip, min(len(batch), last - row) - skip)
                number = row + skip
                for piece in pieces(wanted, BATCH_ROWS, BATCH_BYTES) if dense else [wanted]:
                    for raw in encode_rows(piece):
                        yield (
                            Record(number, raw, number, len(raw))
                            if len(raw) <= limit
                            else oversized(number, raw, number, limit)
                        )
                        number += 1
            row += len(batch)
            if row >= last:
                return
    # TypeError: a value of a type that has no JSON.
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        message = f"row group {index} cannot be read: {error}"
        digest = hashlib.sha256().digest()
        for number in range(max(row, first), last):
            yield Record(number, None, number, 0, Reason.CORRUPT_FILE, message, digest)


def encode_rows(batch: pa.RecordBatch) -> list[bytes]:
    """The canonical JSON of every row. Raises ValueError if two columns have one name, TypeError if a type has no JSON."""
    names = batch.schema.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two columns have the name {twice!r}")
    try:
        columns = [_values(column) for column in batch.columns]
    except UnicodeDecodeError:
        columns = [_values(column, lenient=True) for column in batch.columns]
        rows = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
        return [
            json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")
            for row in rows
        ]
    encode = msgspec.json.Encoder().encode  # writes NaN and infinities as null
    return [encode(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _values(column: pa.Array, lenient: bool = False) -> list[Any]:
    storage, convert = _plan(column.type, lenient)
    if storage != column.type:
        column = column.cast(storage)
    values: list[Any] = column.to_pylist()
    return values if convert is None else [None if value is None else convert(value) for value in values]


def _plan(kind: pa.DataType, lenient: bool) -> tuple[pa.DataType, Convert | None]:
    """The type to cast a column to, and what to do with its Python values (None: nothing)."""
    t = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _plan(kind.storage_type, lenient)
    if t.is_dictionary(kind):
        return _plan(kind.value_type, lenient)
    if t.is_timestamp(kind):
        return pa.int64(), lambda value: _timestamp(value, kind.unit, kind.tz is not None)
    if t.is_date32(kind):
        return pa.int32(), _date
    if t.is_date64(kind):
        return pa.int64(), lambda value: _date(value // 86_400_000)
    if t.is_time32(kind):
        return pa.int32(), lambda value: _clock(value, kind.unit)
    if t.is_time64(kind):
        return pa.int64(), lambda value: _clock(value, kind.unit)
    if t.is_duration(kind):
        return pa.int64(), None
    if t.is_decimal(kind):
        return kind, lambda value: format(value, "f")
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind) or t.is_binary_view(kind):
        return kind, _binary
    if lenient and (t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)):
        return pa.large_binary(), lambda value: value.decode("utf-8", "surrogateescape")
    if t.is_floating(kind) and lenient:  # json.dumps would write NaN
        return kind, lambda value: value if value - value == 0 else None
    if t.is_struct(kind):
        plans = [_plan(field.type, lenient) for field in kind]
        storage = pa.struct([field.with_type(plan[0]) for field, plan in zip(kind, plans, strict=True)])
        converts = [(field.name, plan[1]) for field, plan in zip(kind, plans, strict=True) if plan[1] is not None]
        return storage, (lambda value: _struct(value, converts)) if converts else None
    if t.is_map(kind):
        key_type, key = _plan(kind.key_type, lenient)
        item_type, item = _plan(kind.item_type, lenient)
        storage = pa.map_(key_type, item_type)
        if key is None and item is None:
            return storage, None
        return storage, lambda value: [[_apply(key, k), _apply(item, v)] for k, v in value]
    if t.is_list_view(kind) or t.is_large_list_view(kind):
        inner, convert = _plan(kind.value_type, lenient)
        if inner != kind.value_type:  # Arrow casts no list view, and where it makes a list of one it loses values
            raise pa.ArrowNotImplementedError(f"a column of type {kind}; write it as a list")
        return kind, None if convert is None else lambda value: [_apply(convert, item) for item in value]
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        inner, convert = _plan(kind.value_type, lenient)
        field = kind.value_field.with_type(inner)
        if t.is_large_list(kind):
            storage = pa.large_list(field)
        else:
            storage = pa.list_(field, kind.list_size if t.is_fixed_size_list(kind) else -1)
        return storage, None if convert is None else lambda value: [_apply(convert, item) for item in value]
    return kind, None


def _apply(convert: Convert | None, value: Any) -> Any:
    return value if value is None or convert is None else convert(value)


def _struct(value: dict[str, Any], converts: list[tuple[str, Convert]]) -> dict[str, Any]:
    for name, convert in converts:
        value[name] = _apply(convert, value[name])
    return value


def _fraction(value: int, unit: str) -> str:
    return f".{value:0{_DIGITS[unit]}d}" if _DIGITS[unit] else ""


def _timestamp(value: int, unit: str, utc: bool) -> str | int:
    seconds, rest = divmod(value, _PER_SECOND[unit])
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    except OverflowError:  # outside the years 1 to 9999
        return value
    return f"{moment.replace(tzinfo=None).isoformat()}{_fraction(rest, unit)}{'Z' if utc else ''}"


def _date(days: int) -> str | int:
    try:
        return (date(1970, 1, 1) + timedelta(days=days)).isoformat()
    except OverflowError:
        return days


def _clock(value: int, unit: str) -> str:
    seconds, rest = divmod(value, _PER_SECOND[unit])
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{_fraction(rest, unit)}"


def _binary(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()
