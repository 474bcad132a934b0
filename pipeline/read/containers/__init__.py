"""Containers: a stream of bytes split into raw records. Nothing here knows what a conversation is."""

from collections.abc import Iterator

from pipeline.read.containers.array import split_array
from pipeline.read.containers.lines import split_lines
from pipeline.read.containers.record import CorruptStream, Record
from pipeline.read.containers.single import read_single
from pipeline.read.containers.source import ByteSource, without_bom

__all__ = [
    "ByteSource",
    "CorruptStream",
    "Record",
    "read_single",
    "split",
    "split_array",
    "split_lines",
    "without_bom",
]


def split(source: ByteSource, container: str, limit: int) -> Iterator[Record]:
    """The raw records of ``lines``, an ``array`` or a ``single`` value; one larger than ``limit`` bytes is not held."""
    dropped, chunks = without_bom(iter(source))
    if container == "array":
        return split_array(chunks, limit, dropped)
    if container == "single":
        return read_single(chunks, limit, dropped)
    return split_lines(chunks, limit, offset=dropped)
