"""Shards of the input.

The driver calls :func:`pipeline.read.scan.scan` for every file, which gives the hashes that the fingerprint needs, and then
iterates :func:`cuts` (or :func:`cut_all` over all files). A worker iterates :func:`records` of a cut. Plain
line files and Parquet files are read by the workers themselves, by range. Compressed files and arrays cannot
be entered in the middle: they are read once, by whoever iterates ``cuts``, and their records travel in the
cut.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain, islice

import msgspec

from pipeline.errors import Reason, UserError
from pipeline.location import redact
from pipeline.read.containers import ByteSource, CorruptStream, Record, split, split_lines
from pipeline.read.formats import DETECT_RECORDS, UNKNOWN
from pipeline.read.head import format_of_head, has_field, read_head
from pipeline.read.inputs import InputFile, opened
from pipeline.read.options import ReadOptions
from pipeline.read.scan import FileScan, Slice, is_full, peek


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


#: A compressed Parquet file is unpacked to a temporary file of at most this size.
MAX_UNPACKED_BYTES = 16 << 30


def cuts(file: InputFile, scan: FileScan, options: ReadOptions, limit: int | None = None) -> Iterator[Cut]:
    """The shards of one file, in order; together at most ``limit`` records."""
    if scan.slices:
        yield from _range_cuts(file, scan, options, limit)
    elif scan.records is None:
        yield from _payload_cuts(file, scan, options, limit)


def check_messages_field(files: Sequence[InputFile], options: ReadOptions) -> None:
    """Raise UserError where a field for the messages is named that no file's first records have: a slip of the pen."""
    if options.messages_field is None or not files:
        return
    for file in files:
        for cut in cuts(file, peek(file, options), options, DETECT_RECORDS):
            if has_field(list(records(cut, options)), options.messages_field):
                return
    raise UserError(f"--messages-field {options.messages_field}: no record at the start of any input has this field")


def input_size(scans: Sequence[FileScan], options: ReadOptions) -> int:
    """About how many bytes of the files, as stored, are read: all, or as many as the records that are wanted take."""
    size, left = 0, options.limit
    for found in scans:
        if left is None or not found.records:
            size += found.size
        else:
            wanted = min(left, found.records)
            size += found.size * wanted // found.records
            left -= wanted
    return size


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
    with opened(cut.location) as stream:
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
        end = piece.offset + piece.length * count // piece.count
        position = end if scan.container == "lines" else scan.size * end // (last.offset + last.length)
        whole = _cut(file, scan, piece, format)
        yield msgspec.structs.replace(
            whole, count=count, position=scan.size if piece is last and count == piece.count else position
        )


def _format_by_range(file: InputFile, scan: FileScan, options: ReadOptions) -> str:
    if options.format != "auto":
        return options.format
    head = chain.from_iterable(_read_range(_cut(file, scan, piece, UNKNOWN), options) for piece in scan.slices)
    return format_of_head(read_head(head), options.messages_field)


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
    with opened(file.location) as stream:
        source = ByteSource(stream, scan.compression)
        found: Iterator[Record]
        if scan.container == "parquet":
            found = _unpacked_parquet(source, scan, options)
        else:
            found = split(source, scan.container, options.max_record_bytes)
        format = options.format
        if format == "auto":
            head = read_head(found)
            format = format_of_head(head, options.messages_field)
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
            if is_full(len(payload), size, options):
                yield close()
                payload, size = [], 0
        if payload:
            yield close()


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
