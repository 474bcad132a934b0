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
from pipeline.read.containers.parquet import encode_rows, open_parquet, read_rows
from pipeline.read.decode import decode

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
