"""Bytes of a file in chunks, decompressed on the way.

Everything behind this module sees an iterable of ``bytes``. A stream that breaks raises
:class:`~pipeline.read.containers.record.CorruptStream` after the last good chunk.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from pipeline.read.containers.record import CorruptStream

#: Bytes of one chunk of an uncompressed file, and about as many of a decompressed one.
CHUNK = 1 << 20

#: Compressed bytes given to zstandard at once. Four bytes can stand for 128 KiB (a run-length block), so that
#: this bounds what a hostile file makes it return in one call: 32 MiB. Larger slices are no faster (2.1
#: against 2.5 GB/s).
ZSTD_SLICE = 1 << 10

#: Frames that need a larger window are refused: the format allows terabytes, ``zstd --ultra`` uses 128 MiB.
ZSTD_MAX_WINDOW = 1 << 27

#: Decompressed bytes asked from zlib at once.
GZIP_SLICE = 1 << 18

BOM = b"\xef\xbb\xbf"


class ByteSource:
    """The decompressed chunks of a stream, once.

    ``compression`` is ``""``, ``"zst"`` or ``"gz"``; ``position`` counts the raw bytes read so far, for
    progress.
    """

    def __init__(self, stream: BinaryIO, compression: str = "", length: int | None = None) -> None:
        self._stream = stream
        self._left = length  # raw bytes that may still be read; None: to the end
        self._compression = compression
        self.position = 0

    def __iter__(self) -> Iterator[bytes]:
        if self._compression == "zst":
            return _gather(self._unzstd())
        if self._compression == "gz":
            return _gather(self._gunzip())
        return self._raw()

    def _raw(self) -> Iterator[bytes]:
        while True:
            size = CHUNK if self._left is None else min(CHUNK, self._left)
            chunk = self._stream.read(size) if size else b""
            if not chunk:
                return
            self.position += len(chunk)
            if self._left is not None:
                self._left -= len(chunk)
            yield chunk

    def _unzstd(self) -> Iterator[bytes]:
        decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW)
        frame = decompressor.decompressobj()
        inside = False  # in the middle of a frame
        for chunk in self._raw():
            start = self.position - len(chunk)
            for begin in range(0, len(chunk), ZSTD_SLICE):
                piece = chunk[begin : begin + ZSTD_SLICE]
                while piece:
                    try:
                        data = frame.decompress(piece)
                    except zstandard.ZstdError as error:
                        raise CorruptStream(f"zstd, near byte {start + begin:,} of the file: {error}") from None
                    if data:
                        yield data
                    inside, piece = not frame.eof, frame.unused_data if frame.eof else b""
                    if frame.eof:
                        frame = decompressor.decompressobj()
        if inside or self.position == 0:
            raise CorruptStream(f"zstd: the file ends inside a frame, at byte {self.position:,}")

    def _gunzip(self) -> Iterator[bytes]:
        member = zlib.decompressobj(wbits=31)
        inside = finished = False  # in the middle of a member; behind at least one
        for chunk in self._raw():
            piece = chunk
            while piece:
                if finished and not inside:
                    piece = piece.lstrip(b"\0")  # padding behind a member, as gzip itself allows
                    if not piece:
                        break
                try:
                    data = member.decompress(piece, GZIP_SLICE)
                except zlib.error as error:
                    near = self.position - len(piece)
                    raise CorruptStream(f"gzip, near byte {near:,} of the file: {error}") from None
                if data:
                    yield data
                inside, piece = not member.eof, member.unused_data if member.eof else member.unconsumed_tail
                if member.eof:
                    member = zlib.decompressobj(wbits=31)
                    finished = True
        if inside or self.position == 0:
            raise CorruptStream(f"gzip: the file ends inside a member, at byte {self.position:,}")


def _gather(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Small pieces joined to about ``CHUNK`` bytes: the splitters have a cost per chunk."""
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= CHUNK:
                yield b"".join(held)
                held, size = [], 0
    except CorruptStream:
        if held:
            yield b"".join(held)
        raise
    if held:
        yield b"".join(held)


def without_bom(chunks: Iterator[bytes]) -> tuple[int, Iterator[bytes]]:
    """Drop a UTF-8 byte order mark. Returns the bytes dropped (0 or 3) and the remaining chunks."""
    head = b""
    failure: CorruptStream | None = None
    try:
        while len(head) < len(BOM):
            piece = next(chunks, b"")
            if not piece:
                break
            head += piece
    except CorruptStream as error:
        failure = error
    dropped = len(BOM) if head.startswith(BOM) else 0
    return dropped, _prepend(head[dropped:], chunks, failure)


def _prepend(head: bytes, chunks: Iterator[bytes], failure: CorruptStream | None) -> Iterator[bytes]:
    if head:
        yield head
    if failure is not None:
        raise failure
    yield from chunks
