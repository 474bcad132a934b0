"""Containers: a stream of bytes split into raw records. Nothing here knows what a conversation is."""

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
    "split_array",
    "split_lines",
    "without_bom",
]
