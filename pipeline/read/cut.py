"""Shards of the input: one pass per file for its hash, its records and the places to cut between them.

The driver calls :func:`scan` for every file, which gives the hashes that the fingerprint needs, and then
iterates :func:`cuts` (or :func:`cut_all` over all files). A worker iterates :func:`records` of a cut. Plain
line files and Parquet files are read by the workers themselves, by range. Compressed files and arrays cannot
be entered in the middle: they are read once, by whoever iterates ``cuts``, and their records travel in the
cut.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import BinaryIO, cast

import msgspec

from pipeline.errors import Reason, Rejected, UserError
from pipeline.location import redact
from pipeline.read.containers import (
    ByteSource,
    CorruptStream,
    Record,
    read_single,
    split_array,
    split_lines,
    without_bom,
)
from pipeline.read.containers.kind import sniff_json, split_suffix
from pipeline.read.formats import DETECT_RECORDS, UNKNOWN, detect
from pipeline.read.inputs import InputFile, open_input, unreadable
from pipeline.read.options import ReadOptions
from pipeline.read.parse import decode

#: Called with the number of raw bytes that were read since the last call.
Progress = Callable[[int], None]

#: A format is detected from records within these bounds, so that a file of garbage is not held in memory.
HEAD_RECORDS = 1024
HEAD_BYTES = 32 << 20

#: A compressed Parquet file is unpacked to a temporary file of at most this size.
MAX_UNPACKED_BYTES = 16 << 30

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


class Cut(msgspec.Struct, frozen=True):
    """One shard's worth of one file. Picklable."""

    file: str  # InputFile.name
    location: str
    container: str
    #: A name in FORMATS, or UNKNOWN where no record of the file was recognised.
    format: str
    #: Number of the first record within the file, and how many records.
    first: int
    count: int
    #: Byte range, or rows, that the worker reads itself …
    offset: int = 0
    length: int = 0
    #: … or the records.
    payload: list[Record] | None = None
    #: Raw bytes of the file that are consumed when this shard is done: for progress, not exact.
    position: int = 0


def hash_file(file: InputFile, progress: Progress | None = None) -> str:
    """SHA-256 of the file as stored, hexadecimal."""
    with _opened(file.location) as stream:
        hashing = _Hashing(stream, progress)
        while hashing.read(_HASH_CHUNK):
            pass
        return hashing.hexdigest()


def scan(file: InputFile, options: ReadOptions, progress: Progress | None = None) -> FileScan:
    """Hash a file and, where workers will read it by range, find the cuts. One pass over the bytes.

    Raises UserError if the file cannot be read. What is wrong inside it becomes records.
    """
    suffix, compression = split_suffix(file.name)
    container = _container(file, suffix, compression, options)
    if container != "lines" or compression:
        digest = hash_file(file, progress)
        slices = _parquet_slices(file, options) if container == "parquet" and not compression else ()
        count = sum(piece.count for piece in slices) if slices else None
        return FileScan(digest, file.size, container, compression, count, slices)
    with _opened(file.location) as stream:
        hashing = _Hashing(stream, progress)
        slices = tuple(_line_slices(_split(hashing, "lines", "", options), options))
        return FileScan(hashing.hexdigest(), hashing.size, "lines", "", sum(piece.count for piece in slices), slices)


def cuts(file: InputFile, scan: FileScan, options: ReadOptions, limit: int | None = None) -> Iterator[Cut]:
    """The shards of one file, in order; together at most ``limit`` records."""
    if scan.slices:
        yield from _range_cuts(file, scan, options, limit)
    elif scan.records is None:
        yield from _payload_cuts(file, scan, options, limit)


def cut_all(files: Sequence[InputFile], scans: Sequence[FileScan], options: ReadOptions) -> Iterator[Cut]:
    """The shards of all files, in order, until ``options.limit`` records."""
    left = options.limit
    for file, found in zip(files, scans, strict=True):
        if left is not None and left <= 0:
            return
        for cut in cuts(file, found, options, left):
            yield cut
            if left is not None:
                left -= cut.count


def records(cut: Cut, options: ReadOptions) -> Iterator[Record]:
    """The records of a shard. Raises UserError if the file is not the one that was scanned."""
    if cut.payload is not None:
        yield from cut.payload
        return
    count = 0
    for record in islice(_read_range(cut, options), cut.count):
        count += 1
        yield record
    if count != cut.count:
        raise UserError(
            f"{redact(cut.location)}: changed while it was read: {count:,} records where {cut.count:,} were; run again"
        )


def _read_range(cut: Cut, options: ReadOptions) -> Iterator[Record]:
    with _opened(cut.location) as stream:
        if cut.container == "parquet":
            from pipeline.read.containers.parquet import open_parquet, read_rows

            try:
                rows = open_parquet(stream)
            except CorruptStream:
                return
            yield from read_rows(rows, options.max_record_bytes, cut.offset, cut.length)
        else:
            stream.seek(cut.offset)
            source = ByteSource(stream, length=cut.length)
            yield from split_lines(source, options.max_record_bytes, cut.first, cut.offset)


# Scanning


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
    with _opened(file.location) as stream:
        return sniff_json(stream, compression, options.max_record_bytes)


def _line_slices(found: Iterable[Record], options: ReadOptions) -> Iterator[Slice]:
    first = count = size = offset = end = 0
    for record in found:
        if count == 0:
            first, offset = record.number, record.offset
        count += 1
        size += record.length
        end = record.offset + record.length
        if _full(count, size, options):
            yield Slice(first, count, offset, end - offset)
            count = size = 0
    if count:
        yield Slice(first, count, offset, end - offset)


def _full(count: int, size: int, options: ReadOptions) -> bool:
    """Where a shard closes: the same for files that are read by range and for those that are read through."""
    return count >= options.shard_records or size >= options.shard_bytes


def _parquet_slices(file: InputFile, options: ReadOptions) -> tuple[Slice, ...]:
    """Cuts by row, from the metadata: bytes are taken to be even within a row group. () if unreadable."""
    from pipeline.read.containers.parquet import open_parquet, row_groups

    with _opened(file.location) as stream:
        try:
            groups = row_groups(open_parquet(stream))
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


# Cutting


def _range_cuts(file: InputFile, scan: FileScan, options: ReadOptions, limit: int | None) -> Iterator[Cut]:
    format = _format_by_range(file, scan, options)
    last = scan.slices[-1]
    left = limit
    for piece in scan.slices:
        count = piece.count if left is None else min(left, piece.count)
        if count <= 0:
            return
        if left is not None:
            left -= count
        end = piece.offset + piece.length
        position = end if scan.container == "lines" else scan.size * end // (last.offset + last.length)
        whole = _cut(file, scan, piece, format)
        yield msgspec.structs.replace(whole, count=count, position=scan.size if piece is last else position)


def _format_by_range(file: InputFile, scan: FileScan, options: ReadOptions) -> str:
    if options.format != "auto":
        return options.format
    head = chain.from_iterable(_read_range(_cut(file, scan, piece, UNKNOWN), options) for piece in scan.slices)
    return _detect(_head(head), options)


def _cut(file: InputFile, scan: FileScan, piece: Slice, format: str) -> Cut:
    return Cut(
        file=file.name,
        location=file.location,
        container=scan.container,
        format=format,
        first=piece.first,
        count=piece.count,
        offset=piece.offset,
        length=piece.length,
    )


def _payload_cuts(file: InputFile, scan: FileScan, options: ReadOptions, limit: int | None) -> Iterator[Cut]:
    with _opened(file.location) as stream:
        source = ByteSource(stream, scan.compression)
        found: Iterator[Record]
        if scan.container == "parquet":
            found = _unpacked_parquet(source, scan, options)
        else:
            found = _split_source(source, scan.container, options)
        format = options.format
        if format == "auto":
            head = _head(found)
            format = _detect(head, options)
            found = chain(head, found)
        payload: list[Record] = []
        size = 0

        def close() -> Cut:
            position = min(scan.size, source.position)
            return Cut(
                file=file.name,
                location=file.location,
                container=scan.container,
                format=format,
                first=payload[0].number,
                count=len(payload),
                payload=payload,
                position=position,
            )

        for record in islice(found, limit):
            payload.append(record)
            size += record.length
            if _full(len(payload), size, options):
                yield close()
                payload, size = [], 0
        if payload:
            yield close()


def _split(stream: object, container: str, compression: str, options: ReadOptions) -> Iterator[Record]:
    return _split_source(ByteSource(cast(BinaryIO, stream), compression), container, options)


def _split_source(source: ByteSource, container: str, options: ReadOptions) -> Iterator[Record]:
    dropped, chunks = without_bom(iter(source))
    if container == "array":
        return split_array(chunks, options.max_record_bytes, dropped)
    if container == "single":
        return read_single(chunks, options.max_record_bytes, dropped)
    return split_lines(chunks, options.max_record_bytes, offset=dropped)


def _unpacked_parquet(source: ByteSource, scan: FileScan, options: ReadOptions) -> Iterator[Record]:
    """The rows of a Parquet file that is compressed as a whole, or one record that says what is wrong."""
    from pipeline.read.containers.parquet import open_parquet, read_rows

    with tempfile.TemporaryFile() as unpacked:
        size = 0
        digest = hashlib.sha256()
        try:
            for chunk in source:
                size += len(chunk)
                if size > MAX_UNPACKED_BYTES:
                    raise CorruptStream(f"more than {MAX_UNPACKED_BYTES:,} bytes; unpack it first")
                digest.update(chunk)
                unpacked.write(chunk)
            unpacked.seek(0)
            rows = open_parquet(unpacked)
        except CorruptStream as error:
            yield Record(0, None, 0, size, Reason.CORRUPT_FILE, str(error), digest.digest())
            return
        yield from read_rows(rows, options.max_record_bytes)


def _head(found: Iterator[Record]) -> list[Record]:
    """The first records: enough to tell the format, or as many as may be held."""
    head: list[Record] = []
    size = parsed = 0
    for record in found:
        head.append(record)
        size += record.length if record.raw is not None else 0
        parsed += _try_decode(record) is not None
        if parsed >= DETECT_RECORDS or len(head) >= HEAD_RECORDS or size >= HEAD_BYTES:
            break
    return head


def _detect(head: list[Record], options: ReadOptions) -> str:
    values = (value for record in head if (value := _try_decode(record)) is not None)
    return detect(values, options.messages_field) or UNKNOWN


def _try_decode(record: Record) -> object | None:
    if record.raw is None:
        return None
    try:
        value: object = decode(record.raw)
    except Rejected:
        return None
    return value


@contextmanager
def _opened(location: str) -> Iterator[BinaryIO]:
    """``open_input``, and what goes wrong while reading is said in the same way."""
    stream = open_input(location)
    try:
        yield stream
    except OSError as error:
        raise unreadable(location, error) from None
    finally:
        stream.close()
