"""JSON arrays: cut by structure, at any chunk size, exactly where a JSON parser would cut."""

import hashlib
import json
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Reason
from pipeline.read.containers import CorruptStream, Record, read_single, split_array
from pipeline.read.containers.structure import nesting

LIMIT = 1 << 20

# Strings rich in what could be taken for structure.
strings = st.one_of(st.text(), st.text(alphabet='\\"[]{},: \n/u'))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | strings,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
    max_leaves=12,
)
spaces = st.sampled_from(["", " ", "\n", "\t\r\n "])


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


@given(st.lists(values, max_size=6), spaces, st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40))
def test_elements_are_those_of_a_parser(
    items: list[object], space: str, indent: int | None, ascii_only: bool, size: int
) -> None:
    texts = [json.dumps(item, indent=indent, ensure_ascii=ascii_only) for item in items]
    body = ",".join(f"{space}{text}{space}" for text in texts)
    data = f"{space}[{body or space}]{space}".encode("utf-8", "surrogatepass")
    records = list(split_array(chunked(data, size), LIMIT))
    assert [r.raw for r in records] == [text.encode("utf-8", "surrogatepass") for text in texts]
    assert [r.number for r in records] == list(range(len(items)))
    assert all(data[r.offset : r.offset + r.length] == r.raw for r in records)


@given(st.lists(values, min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 30), spaces)
def test_large_elements_are_hashed_alike_at_any_chunk_size(
    items: list[object], size: int, limit: int, space: str
) -> None:
    texts = [json.dumps(item).encode() for item in items]
    tail = space.encode()
    data = b"[" + b",".join(b" " + text + tail for text in texts) + b"]"
    records = list(split_array(chunked(data, size), limit))
    assert len(records) == len(texts)
    for record, text in zip(records, texts, strict=True):
        assert record.length == len(text)
        assert data[record.offset : record.offset + record.length] == text
        if len(text + tail) > limit:
            assert record.raw is None and record.reason is Reason.TOO_LARGE
            assert record.sha256 == hashlib.sha256(text).digest()
        else:
            assert record.raw == text


@given(values, st.integers(0, 3))
def test_nesting_is_the_depth_of_the_value(value: object, more: int) -> None:
    def depth(value: object) -> int:
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    assert nesting(b"[" * more + json.dumps(value).encode() + b"]" * more) == depth(value) + more


def test_bad_json_inside_an_element_costs_only_itself() -> None:
    data = b'[{"a":1}, {"a":}, tru, , {"b":[1,2]}]'
    assert [r.raw for r in split_array([data], LIMIT)] == [b'{"a":1}', b'{"a":}', b"tru", b"", b'{"b":[1,2]}']


@pytest.mark.parametrize(
    ("data", "good", "rest", "said"),
    [
        (b'[{"a":1}, {"b":', 1, b'{"b":', "ends before"),
        (b'[{"a":1},', 1, b"", "ends before"),
        (b"[", 0, b"", "ends before"),
        (b'[{"a":1}] {"b":2}', 1, b'{"b":2}', "behind the end"),
        (b'[{"a":1}, {"b":2}}, {"c":3}]', 1, b'{"b":2}}, {"c":3}]', "not opened, at byte 17"),
        (b'[1, "open, 2, 3]', 1, b'"open, 2, 3]', "ends before"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_broken_structure_makes_the_rest_one_record(data: bytes, good: int, rest: bytes, said: str, size: int) -> None:
    records = list(split_array(chunked(data, size), LIMIT))
    last = records[-1]
    assert len(records) == good + 1
    assert last.reason is Reason.CORRUPT_FILE and last.raw is None
    if "not opened" not in said:  # the element before the stray bracket belongs to the rest as well
        assert last.length == len(rest) and last.offset == len(data) - len(rest)
    assert last.sha256 == hashlib.sha256(data[last.offset :]).digest()
    assert said in last.message and f"byte {last.offset:,}" in last.message


def test_a_broken_stream_ends_in_one_record() -> None:
    def stream() -> Iterator[bytes]:
        yield b"[1,2,3"
        raise CorruptStream("checksum")

    *good, rest = split_array(stream(), LIMIT)
    assert [r.raw for r in good] == [b"1", b"2"]
    assert (rest.reason, rest.offset, rest.length) == (Reason.CORRUPT_FILE, 5, 1)


def test_white_space_without_end_is_not_held() -> None:
    def stream() -> Iterator[bytes]:
        yield b"[1 "
        for _ in range(100):
            yield b" " * (1 << 20)
        yield b",2]"

    tracemalloc.start()
    one, two = split_array(stream(), LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    assert one.reason is Reason.TOO_LARGE and one.length == 1 and two.raw == b"2"


def test_single_record_files() -> None:
    pretty = json.dumps({"a": [1, 2]}, indent=2).encode()
    assert list(read_single(chunked(b"\n " + pretty + b"\n", 3), LIMIT)) == [Record(0, pretty, 2, len(pretty))]
    assert list(read_single([b" \n"], LIMIT)) == []
    (large,) = read_single(chunked(pretty, 3), 5)
    assert large.reason is Reason.TOO_LARGE and large.sha256 == hashlib.sha256(pretty).digest()
