"""Parquet: one canonical JSON object per row, whatever the column types; damage stays where it is."""

import datetime as dt
import io
import json
from decimal import Decimal
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import Reason, Rejected
from pipeline.read.containers import parquet
from pipeline.read.containers.dense import decoded_bytes, pieces
from pipeline.read.containers.parquet import encode_rows, open_parquet, read_rows
from pipeline.read.cut import cuts, records
from pipeline.read.decode import decode
from pipeline.read.inputs import resolve_inputs
from pipeline.read.options import ReadOptions
from pipeline.read.scan import scan

LIMIT = 1 << 20


def one(array: pa.Array) -> str:
    (row,) = encode_rows(pa.record_batch({"x": array}))
    text = row.decode()
    assert text.startswith('{"x":')
    return text[5:-1]


@pytest.mark.parametrize(
    ("array", "written"),
    [
        (pa.array([1 << 62]), str(1 << 62)),
        (pa.array([(1 << 64) - 1], pa.uint64()), str((1 << 64) - 1)),
        (pa.array([float("nan")]), "null"),
        (pa.array([float("-inf")]), "null"),
        (pa.array([1.5]), "1.5"),
        (pa.array([True]), "true"),
        (pa.array([None], pa.string()), "null"),
        (pa.array(["ä\n"]), '"ä\\n"'),
        (pa.array([b"text"]), '"text"'),
        (pa.array([b"\xff\x00"]), '"/wA="'),
        (pa.array([Decimal("1.10")]), '"1.10"'),
        (pa.array([0], pa.timestamp("s")), '"1970-01-01T00:00:00"'),
        (pa.array([1_700_000_000_123], pa.timestamp("ms", "UTC")), '"2023-11-14T22:13:20.123Z"'),
        (pa.array([-1], pa.timestamp("ns")), '"1969-12-31T23:59:59.999999999"'),
        (pa.array([dt.date(2024, 2, 29)]), '"2024-02-29"'),
        (pa.array([3_723_000_001], pa.time64("us")), '"01:02:03.000001"'),
        (pa.array([5], pa.duration("ms")), "5"),
        (pa.array(["a"]).dictionary_encode(), '"a"'),
        (pa.array([[{"z": 1, "a": 0}]]), '[{"z":1,"a":0}]'),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), '[["k",1]]'),
        (
            pa.array(
                [[{"t": 0, "d": Decimal("2")}, None]],
                pa.list_(pa.struct([("t", pa.timestamp("s")), ("d", pa.decimal128(3))])),
            ),
            '[{"t":"1970-01-01T00:00:00","d":"2"},null]',
        ),
        (pa.array([[b"\xff"]], pa.large_list(pa.binary())), '["/w=="]'),
        (pa.array([[1.5, float("nan")]], pa.list_(pa.float64(), 2)), "[1.5,null]"),
        (pa.array([[b"a", None]], pa.list_view(pa.binary())), '["a",null]'),
    ],
    ids=str,
)
def test_canonical_values(array: pa.Array, written: str) -> None:
    assert one(array) == written


def test_text_that_is_not_utf8_is_quarantined_alone() -> None:
    bad = pa.array([b"good", b"bad \xff"]).view(pa.string())
    batch = pa.record_batch(
        {"question": bad, "score": [float("nan"), 2.0], "when": pa.array([0, 1], pa.timestamp("s"))}
    )
    good, broken = encode_rows(batch)
    assert json.loads(good) == {"question": "good", "score": None, "when": "1970-01-01T00:00:00"}
    with pytest.raises(Rejected) as caught:
        decode(broken)
    assert caught.value.reason is Reason.INVALID_UNICODE


def write(path: Path, rows: int, group: int) -> pa.Table:
    table = pa.table({"question": [f"q{i}" * 20 for i in range(rows)], "answer": [f"a{i}" for i in range(rows)]})
    pq.write_table(
        table, path, row_group_size=group, compression="none", use_dictionary=False, write_page_checksum=True
    )
    return table


def test_any_range_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = [msgspec.json.encode(row) for row in write(path, 1000, 300).to_pylist()]
    file = open_parquet(path.open("rb"))
    for first, count in [(0, 1000), (0, 1), (299, 2), (650, 350), (999, 1), (100, 0)]:
        found = list(read_rows(file, LIMIT, first, count))
        assert [r.raw for r in found] == rows[first : first + count]
        assert [r.number for r in found] == [r.offset for r in found] == list(range(first, first + count))


def test_rows_that_are_too_large(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, 3, 3)
    assert {r.reason for r in read_rows(open_parquet(path.open("rb")), 10)} == {Reason.TOO_LARGE}


def test_a_damaged_row_group_costs_only_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, 900, 300)
    data = bytearray(path.read_bytes())
    at = data.index(b"q450" * 20)
    data[at : at + 4] = b"qXXX"
    found = list(read_rows(open_parquet(io.BytesIO(bytes(data))), LIMIT))
    assert [r.number for r in found] == list(range(900))
    assert {r.number for r in found if r.reason is Reason.CORRUPT_FILE} == set(range(300, 600))


def test_columns_that_have_no_json_cost_their_row_group_only(tmp_path: Path) -> None:
    """Two of one name, of which a JSON object would keep the last; views of lists that Arrow does not cast."""
    for number, table in enumerate(
        [
            pa.table([["q"], ["lost"], ["a"]], names=["question", "answer", "answer"]),
            pa.table({"question": ["q"], "when": pa.array([[0]], pa.list_view(pa.timestamp("us")))}),
        ]
    ):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(table, path)
        (found,) = read_rows(open_parquet(path.open("rb")), LIMIT)
        assert found.reason is Reason.CORRUPT_FILE
        assert found.message is not None and ("'answer'" in found.message or "list_view" in found.message)


def test_a_value_that_json_does_not_know_is_a_broken_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever type Arrow may bring next: the run goes on."""
    path = tmp_path / "x.parquet"
    write(path, 2, 1)
    monkeypatch.setattr(parquet, "_plan", lambda kind, lenient: (kind, lambda value: object()))
    assert [r.reason for r in read_rows(open_parquet(path.open("rb")), LIMIT)] == [Reason.CORRUPT_FILE] * 2


def shared(kind: str, rows: int, text: str) -> pa.Table:
    """A table whose rows share one text, which a file has once: as a column, inside messages, as a dictionary."""
    answers = [str(row) for row in range(rows)]
    if kind == "column":
        return pa.table({"question": [text] * rows, "answer": answers})
    if kind == "dictionary":
        indices = pa.array([0] * rows, pa.int32())
        return pa.table({"question": pa.DictionaryArray.from_arrays(indices, [text]), "answer": answers})
    user = {"role": "user", "content": text}
    return pa.table({"messages": [[user, {"role": "assistant", "content": answer}] for answer in answers]})


@pytest.mark.parametrize("kind", ["column", "messages", "dictionary"])
@pytest.mark.parametrize("group", [70, 1000])
def test_a_text_that_rows_share_counts_in_each(kind: str, group: int, tmp_path: Path) -> None:
    """Shards close by what is read, not by what the file has; and each is read in pieces that fit into memory."""
    table = shared(kind, 200, "a text " * 20_000)
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=group)
    rows = [msgspec.json.encode(row) for row in table.to_pylist()]
    assert path.stat().st_size * 100 < sum(map(len, rows))
    options = ReadOptions(shard_bytes=4 << 20)
    (file,) = resolve_inputs([str(path)])
    shards = list(cuts(file, scan(file, options), options))
    found = [[record.raw for record in records(shard, options)] for shard in shards]
    assert [raw for shard in found for raw in shard] == rows
    sizes = [sum(len(raw or b"") for raw in shard) for shard in found]
    assert max(sizes) < 5 << 20 and min(sizes[:-1]) > 3 << 20


@pytest.mark.parametrize(
    "array",
    [
        pa.array([[1, 2]] * 3, pa.list_view(pa.int64())),
        pa.array([["a" * 9000]] * 3, pa.large_list_view(pa.string())),
        pa.array(["a"] * 3, pa.string_view()),
        pa.array([[("a", "b" * 9000)]] * 3, pa.map_(pa.string(), pa.string())),
        pa.array([["a" * 9000, None]] * 3, pa.list_(pa.string(), 2)),
        pa.array(["a" * 9000] * 3, pa.large_string()),
        pa.array([b"a" * 9000] * 3),
        pa.array([1, None, 1], pa.decimal128(5)),
        pa.array([None] * 3),
        pa.array([b"good", b"bad \xff", b"a" * 9000]).view(pa.string()),
    ],
    ids=lambda array: str(array.type),
)
def test_columns_of_any_type_beside_one_that_rows_share(array: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"question": ["q" * 100_000] * 3, "y": array, "z": pa.StructArray.from_arrays([array], ["y"])})
    pq.write_table(table, path)
    found = [record.raw for record in read_rows(open_parquet(path.open("rb")), LIMIT)]
    assert found == encode_rows(table.to_batches()[0])
    (file,) = resolve_inputs([str(path)])
    assert scan(file, ReadOptions()).records == 3


@pytest.mark.parametrize("kind", ["column", "messages", "dictionary"])
def test_the_pieces_of_a_batch_are_bounded(kind: str) -> None:
    (batch,) = shared(kind, 100, "x" * 100_000).to_batches()
    for size in (100, 1 << 20, 1 << 30):
        found = list(pieces(batch, 40, size))
        assert pa.Table.from_batches(found).to_pylist() == batch.to_pylist()
        for piece in found:
            decoded = sum(map(decoded_bytes, piece.columns))
            assert len(piece) == 1 or (len(piece) <= 40 and decoded <= size)
            assert 100_000 * len(piece) <= decoded <= 100_100 * len(piece)
    assert list(pieces(batch.slice(0, 0), 40, 100)) == []


def test_texts_together_larger_than_an_arrow_column_can_be(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(shared("dictionary", 3000, "x" * 8_000_000), path)
    found = list(read_rows(open_parquet(path.open("rb")), LIMIT, 2995))
    assert [(record.number, record.reason) for record in found] == [(n, Reason.TOO_LARGE) for n in range(2995, 3000)]
    (file,) = resolve_inputs([str(path)])
    assert len(scan(file, ReadOptions(shard_bytes=64 << 20)).slices) > 300
