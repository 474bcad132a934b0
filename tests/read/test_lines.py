"""Line files: every line that is not blank is one record, at any chunk size, in bounded memory."""

import hashlib
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Reason
from pipeline.read.containers import CorruptStream, Record, split_lines, without_bom

LIMIT = 1 << 20

text = st.lists(st.sampled_from([b"a", b"{}", b"\n", b"\r", b" ", b"\t", b"\x0b", b"\x1e", b"\xff", b"longer"])).map(
    b"".join
)


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def expected(data: bytes, limit: int) -> list[tuple[int, int, int, bytes | None, bytes | None]]:
    rows, offset = [], 0
    for line in data.split(b"\n"):
        if line.strip():
            small = len(line) <= limit
            sha = None if small else hashlib.sha256(line).digest()
            rows.append((len(rows), offset, len(line), line if small else None, sha))
        offset += len(line) + 1
    return rows


@given(text, st.integers(1, 12), st.integers(1, 8))
def test_equals_a_split_of_the_whole(data: bytes, size: int, limit: int) -> None:
    found = [(r.number, r.offset, r.length, r.raw, r.sha256) for r in split_lines(chunked(data, size), limit)]
    assert found == expected(data, limit)


@given(text, st.integers(1, 12))
def test_any_range_reads_like_the_whole(data: bytes, size: int) -> None:
    whole = list(split_lines(chunked(data, size), LIMIT))
    for record in whole:
        rest = split_lines(chunked(data[record.offset :], size), LIMIT, record.number, record.offset)
        assert list(rest) == whole[record.number :]


def test_carriage_return_belongs_to_the_line() -> None:
    assert [r.raw for r in split_lines([b"{}\r\n[1]\r\n\r\n"], LIMIT)] == [b"{}\r", b"[1]\r"]


def test_unusual_separators_do_not_split() -> None:
    line = '"\u2028\u2029\x85\x0b\x0c\x1c"'.encode()
    assert [r.raw for r in split_lines([line + b"\n"], LIMIT)] == [line]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_byte_order_mark_is_dropped_once(size: int) -> None:
    dropped, chunks = without_bom(chunked(b"\xef\xbb\xbf\xef\xbb\xbf{}\n", size))
    assert list(split_lines(chunks, LIMIT, offset=dropped)) == [Record(0, b"\xef\xbb\xbf{}", 3, 5)]


def test_a_huge_line_is_hashed_and_never_held() -> None:
    piece, pieces = b"x" * (1 << 20), 200

    def stream() -> Iterator[bytes]:
        yield b'{"a":1}\n'
        for _ in range(pieces):
            yield bytes(piece)
        yield b'\n{"b":2}\n'

    tracemalloc.start()
    first, huge, last = split_lines(stream(), LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert (first.raw, last.raw) == (b'{"a":1}', b'{"b":2}')
    assert huge.raw is None and huge.reason is Reason.TOO_LARGE and huge.length == pieces << 20
    assert huge.sha256 == hashlib.sha256(piece * pieces).digest()
    assert "209,715,200" in huge.message


def test_a_broken_stream_keeps_what_came_before() -> None:
    def stream() -> Iterator[bytes]:
        yield b"{}\n{}\n[1,"
        raise CorruptStream("checksum")

    *good, rest = split_lines(stream(), LIMIT)
    assert [r.raw for r in good] == [b"{}", b"{}"]
    assert rest == Record(2, None, 6, 3, Reason.CORRUPT_FILE, rest.message, hashlib.sha256(b"[1,").digest())
    assert "byte 6" in rest.message and "checksum" in rest.message
