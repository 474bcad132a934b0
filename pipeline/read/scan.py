"""One pass per file: its hash and, where workers will read it by range, its records and the places to cut between them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, cast

import msgspec

from pipeline.read.containers import ByteSource, CorruptStream, Record, split
from pipeline.read.containers.kind import sniff_json, split_suffix
from pipeline.read.inputs import InputFile, opened
from pipeline.read.options import ReadOptions

#: Called with the number of raw bytes that were read since the last call.
Progress = Callable[[int], None]

_HASH_CHUNK = 1 << 20


class Slice(msgspec.Struct, frozen=True):
    """A range of records that a worker can read by itself."""

    first: int  # number of the first record
    count: int  # records
    offset: int  # byte of the first record (lines); row (Parquet)
    length: int  # bytes up to the end of the last record; rows


class FileScan(msgspec.Struct, frozen=True):
    """What one pass over a file tells."""

    #: SHA-256 of the file as stored, hexadecimal.
    sha256: str
    #: Bytes as stored, as they were read.
    size: int
    #: ``lines``, ``array``, ``single`` or ``parquet``.
    container: str
    #: ``""``, ``zst`` or ``gz``.
    compression: str
    #: Records in the file; None where only reading it through tells (compressed files, arrays).
    records: int | None
    #: The shards, where workers read by range.
    slices: tuple[Slice, ...] = ()


def hash_file(file: InputFile, progress: Progress | None = None) -> str:
    """SHA-256 of the file as stored, hexadecimal."""
    with opened(file.location) as stream:
        hashing = _Hashing(stream, progress)
        while hashing.read(_HASH_CHUNK):
            pass
        return hashing.hexdigest()


def scan(file: InputFile, options: ReadOptions, progress: Progress | None = None) -> FileScan:
    """Hash a file and, where workers will read it by range, find the cuts. One pass over the bytes.

    Raises UserError if the file cannot be read. What is wrong inside it becomes records.
    """
    found = peek(file, options)
    if found.container != "lines" or found.compression:
        return msgspec.structs.replace(found, sha256=hash_file(file, progress))
    with opened(file.location) as stream:
        hashing = _Hashing(stream, progress)
        lines = split(ByteSource(cast(BinaryIO, hashing), ""), "lines", options.max_record_bytes)
        slices = tuple(_line_slices(lines, options))
        return FileScan(hashing.hexdigest(), hashing.size, "lines", "", sum(piece.count for piece in slices), slices)


def peek(file: InputFile, options: ReadOptions) -> FileScan:
    """What is known of a file without reading it through, its hash left empty: enough to read its first records."""
    suffix, compression = split_suffix(file.name)
    container = _container(file, suffix, compression, options)
    slices = _parquet_slices(file, options) if container == "parquet" and not compression else ()
    count = sum(piece.count for piece in slices) if slices else None
    return FileScan("", file.size, container, compression, count, slices)


class _Hashing:
    """A stream that hashes what is read from it."""

    def __init__(self, stream: BinaryIO, progress: Progress | None = None) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self._progress = progress
        self.size = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        self.size += len(data)
        if self._progress is not None and data:
            self._progress(len(data))
        return data

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _container(file: InputFile, suffix: str, compression: str, options: ReadOptions) -> str:
    if suffix == ".parquet":
        return "parquet"
    if suffix != ".json":
        return "lines"
    with opened(file.location) as stream:
        return sniff_json(stream, compression, options.max_record_bytes)


def _line_slices(found: Iterable[Record], options: ReadOptions) -> Iterator[Slice]:
    first = count = size = offset = end = 0
    for record in found:
        if count == 0:
            first, offset = record.number, record.offset
        count += 1
        size += record.length
        end = record.offset + record.length
        if is_full(count, size, options):
            yield Slice(first, count, offset, end - offset)
            count = size = 0
    if count:
        yield Slice(first, count, offset, end - offset)


def is_full(count: int, size: int, options: ReadOptions) -> bool:
    """Where a shard closes: the same for files that are read by range and for those that are read through."""
    return count >= options.shard_records or size >= options.shard_bytes


def _parquet_slices(file: InputFile, options: ReadOptions) -> tuple[Slice, ...]:
    """Cuts by row, from the metadata and the columns that are larger than they look. () if unreadable.

    Bytes are taken to be even within a row group.
    """
    from pipeline.read.containers.parquet import decoded_groups, open_parquet

    with opened(file.location) as stream:
        try:
            groups = decoded_groups(open_parquet(stream))
        except CorruptStream:
            return ()
    slices = []
    begin = 0  # of the open shard
    row = 0
    size = 0.0
    for group in groups:
        per_row = group.bytes / max(1, group.rows)
        end = row + group.rows
        while row < end:
            by_bytes = (options.shard_bytes - size) / per_row if per_row else float("inf")
            room = max(1, min(options.shard_records - (row - begin), int(min(by_bytes, group.rows)) or 1))
            step = min(room, end - row)
            row += step
            size += step * per_row
            if row - begin >= options.shard_records or size + per_row > options.shard_bytes:
                slices.append(Slice(begin, row - begin, begin, row - begin))
                begin, size = row, 0.0
    if row > begin:
        slices.append(Slice(begin, row - begin, begin, row - begin))
    return tuple(slices)
