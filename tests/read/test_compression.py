"""Compressed streams: the same bytes, or a clear end; nothing hostile is held in memory."""

import gzip
import io
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Reason
from pipeline.read.containers import ByteSource, CorruptStream, split_lines

LIMIT = 1 << 20


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


PACK: dict[str, Callable[[bytes], bytes]] = {"zst": zstd, "gz": gzip.compress}

LINES = b"".join(b'{"n": %d, "noise": "%x"}\n' % (n, n * 0x9E3779B97F4A7C15) for n in range(60_000))


@pytest.mark.parametrize("kind", PACK)
@settings(deadline=None, max_examples=40)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_members_follow_each_other(kind: str, members: list[bytes]) -> None:
    packed = b"".join(map(PACK[kind], members)) or PACK[kind](b"")
    source = ByteSource(io.BytesIO(packed), kind)
    assert b"".join(source) == b"".join(members)
    assert source.position == len(packed)


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("keep", [0.3, 0.9, -1])
def test_a_truncated_file_keeps_the_records_before(kind: str, keep: float) -> None:
    packed = PACK[kind](LINES)
    cut = packed[: int(len(packed) * keep) if keep > 0 else -1]
    *good, rest = split_lines(ByteSource(io.BytesIO(cut), kind), LIMIT)
    assert [r.raw for r in good] == LINES.splitlines()[: len(good)]
    assert len(good) > (1_000 if keep < 0.5 else 30_000)
    assert rest.reason is Reason.CORRUPT_FILE and f"at byte {len(cut):,}" in rest.message


@pytest.mark.parametrize("kind", PACK)
def test_a_damaged_file_ends_in_one_record(kind: str) -> None:
    packed = bytearray(PACK[kind](LINES))
    packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
    *_, rest = split_lines(ByteSource(io.BytesIO(bytes(packed)), kind), LIMIT)
    assert rest.reason is Reason.CORRUPT_FILE and "byte" in rest.message


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("packed", [b"", b"not compressed at all\n"])
def test_what_is_no_such_stream_is_corrupt(kind: str, packed: bytes) -> None:
    (record,) = split_lines(ByteSource(io.BytesIO(packed), kind), LIMIT)
    assert record.reason is Reason.CORRUPT_FILE


@pytest.mark.parametrize("kind", PACK)
def test_garbage_behind_the_stream_is_reported(kind: str) -> None:
    packed = PACK[kind](b"{}\n") + b"garbage"
    good, rest = split_lines(ByteSource(io.BytesIO(packed), kind), LIMIT)
    assert good.raw == b"{}" and rest.reason is Reason.CORRUPT_FILE


def test_gzip_padding_is_skipped() -> None:
    packed = gzip.compress(b"{}\n") + bytes(600) + gzip.compress(b"[]\n") + bytes(600)
    assert b"".join(ByteSource(io.BytesIO(packed), "gz")) == b"{}\n[]\n"


def test_zstd_skippable_frames_are_skipped() -> None:
    skippable = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"hello"
    packed = skippable + zstd(b"{}\n") + skippable + zstd(b"[]\n") + skippable
    assert b"".join(ByteSource(io.BytesIO(packed), "zst")) == b"{}\n[]\n"


@pytest.mark.parametrize("kind", PACK)
def test_a_bomb_is_one_large_record(kind: str) -> None:
    size = 256 << 20
    if kind == "zst":
        compressor = zstandard.ZstdCompressor(level=19).compressobj()
        packed = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(size >> 20)) + compressor.flush()
    else:
        packed = gzip.compress(bytes(1 << 20)) * (size >> 20)
    tracemalloc.start()
    (bomb,) = split_lines(ByteSource(io.BytesIO(packed), kind), LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bomb.reason is Reason.TOO_LARGE and bomb.length == size
    assert peak < 80 << 20


def test_a_window_of_gigabytes_is_refused() -> None:
    # Magic; no single segment, no checksum; window of 2^31 bytes; an empty last block.
    frame = bytes.fromhex("28b52ffd") + b"\x00" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00"
    with pytest.raises(CorruptStream, match="zstd, near byte 0"):
        list(ByteSource(io.BytesIO(frame), "zst"))
