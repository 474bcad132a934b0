"""Shards: all records once, whatever the container, the compression and the size of a shard."""

import gzip
import hashlib
import json
import pickle
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Reason, UserError
from pipeline.read import cut as cutting
from pipeline.read.containers import Record
from pipeline.read.cut import Cut, check_messages_field, cut_all, cuts, input_size, records
from pipeline.read.inputs import InputFile, resolve_inputs
from pipeline.read.options import ReadOptions
from pipeline.read.scan import hash_file, scan

ROWS = [{"question": f"q{i}" * (i % 7), "answer": str(i)} for i in range(100)]
RAW = [msgspec.json.encode(row) for row in ROWS]
SMALL = ReadOptions(shard_records=7, shard_bytes=150)


def only(path: Path) -> InputFile:
    (file,) = resolve_inputs([str(path)])
    return file


def read_all(path: Path, options: ReadOptions = SMALL) -> tuple[list[Cut], list[Record]]:
    """Cuts of a file, sent to a worker and back, and all their records."""
    file = only(path)
    found = [pickle.loads(pickle.dumps(cut)) for cut in cuts(file, scan(file, options), options)]
    return found, [record for cut in found for record in records(cut, options)]


def write(folder: Path, name: str) -> Path:
    path = folder / name
    if ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "plain", row_group_size=33)
        data = (folder / "plain").read_bytes()
        (folder / "plain").unlink()
    elif ".json." in f"{name}.":
        data = b"[\n" + b",\n".join(RAW) + b"\n]\n"
    else:
        data = b"\n\n".join(RAW) + b"\n \n"
    if name.endswith(".gz"):
        data = gzip.compress(data)
    if name.endswith(".zst"):
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


NAMES = [f"x{suffix}{packed}" for suffix in (".jsonl", ".json", ".parquet", ".txt") for packed in ("", ".zst", ".gz")]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_records_from_every_container(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    found, read = read_all(path)
    assert [record.raw for record in read] == RAW
    assert [record.number for record in read] == list(range(100))
    assert [cut.first for cut in found] == [sum(c.count for c in found[:i]) for i in range(len(found))]
    assert all(cut.count <= 7 and cut.format == "prompt-completion" for cut in found)
    assert [cut.position for cut in found] == sorted(cut.position for cut in found)
    assert found[-1].position == path.stat().st_size
    assert scan(only(path), SMALL).sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == hash_file(only(path))
    assert read_all(path) == (found, read)


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
@pytest.mark.parametrize("limit", [1, 50, 100, 1000])
def test_how_far_a_run_is_that_wants_some_records_only(tmp_path: Path, name: str, limit: int) -> None:
    path = write(tmp_path, name)
    options = msgspec.structs.replace(SMALL, limit=limit)
    found = scan(only(path), options)
    wanted = input_size([found], options)
    reached = list(cut_all([only(path)], [found], options))[-1].position
    assert abs(wanted - path.stat().st_size * min(limit, 100) / 100) < path.stat().st_size / 20
    assert abs(reached - wanted) < path.stat().st_size / 20


def test_compression_does_not_move_the_cuts(tmp_path: Path) -> None:
    plain, packed = (read_all(write(tmp_path, name))[0] for name in ("x.jsonl", "x.jsonl.zst"))
    assert [(cut.first, cut.count) for cut in plain] == [(cut.first, cut.count) for cut in packed]


def test_by_url(tmp_path: Path) -> None:
    for name in NAMES:
        write(tmp_path, name)
    files = [file for suffix in ("", "/*.txt", "/*.txt.zst") for file in resolve_inputs([f"file://{tmp_path}{suffix}"])]
    assert len(files) == 11
    for file in files:
        found = list(cuts(file, scan(file, SMALL), SMALL))
        assert [record.raw for cut in found for record in records(cut, SMALL)] == RAW


lines = st.lists(st.sampled_from([b"", b" ", b'{"a":1}', b"[1]", b"x" * 40, b"nonsense \r", b"\xff"]), max_size=30)


@settings(deadline=None, max_examples=60)
@given(lines, st.integers(1, 9), st.integers(1, 60), st.booleans(), st.booleans())
def test_every_record_is_in_exactly_one_shard(
    tmp_path_factory: pytest.TempPathFactory,
    body: list[bytes],
    count: int,
    size: int,
    bom: bool,
    packed: bool,
) -> None:
    data = b"\xef\xbb\xbf" * bom + b"\n".join(body)
    path = tmp_path_factory.mktemp("cut") / ("x.jsonl.gz" if packed else "x.jsonl")
    path.write_bytes(gzip.compress(data) if packed else data)
    options = ReadOptions(max_record_bytes=30, shard_records=count, shard_bytes=size)
    found, read = read_all(path, options)
    assert [r.raw for r in read] == [line if len(line) <= 30 else None for line in body if line.strip()]
    assert sum(cut.count for cut in found) == len(read)
    for cut in found:
        own = read[cut.first : cut.first + cut.count]
        assert len(own) <= count and sum(r.length for r in own[:-1]) < size


def test_limit_is_over_all_files(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.json", "c.parquet", "d.jsonl.gz"):
        write(tmp_path, name)
    files = resolve_inputs([str(tmp_path)])
    for limit in (0, 1, 99, 100, 101, 250, 301, 400, 1000):
        options = ReadOptions(shard_records=30, limit=limit)
        found = list(cut_all(files, [scan(file, options) for file in files], options))
        read = [record.raw for cut in found for record in records(cut, options)]
        assert read == (RAW * 4)[:limit]


@pytest.mark.parametrize(
    ("text", "container", "count"),
    [
        ('[{"a": 1}, {"a": 2}]', "array", 2),
        ("\ufeff \n[\n]", "array", 0),
        ('{"a": 1}\n{"a": 2}\n', "lines", 2),
        ('{"a": }\n{"a": 2}\n', "lines", 2),
        ('{"a": 1}', "lines", 1),
        (json.dumps({"a": [{}, 1]}, indent=1), "single", 1),
        ('{"messages": [\n{"role": "user"}\n]}', "single", 1),
        ("not json", "single", 1),
        ("", "lines", 0),
        (" \n ", "lines", 0),
    ],
)
def test_a_json_file_is_what_it_looks_like(tmp_path: Path, text: str, container: str, count: int) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert scan(only(path), SMALL).container == container
    assert len(read_all(path)[1]) == count


@pytest.mark.parametrize("name", ["x.parquet", "x.parquet.gz", "x.parquet.zst"])
def test_a_file_that_is_not_parquet_is_one_record(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = b"PAR1 and then nothing"
    path.write_bytes(
        gzip.compress(data) if name.endswith("gz") else zstandard.compress(data) if "zst" in name else data
    )
    (cut,), (record,) = read_all(path)
    assert record.reason is Reason.CORRUPT_FILE and record.sha256 == hashlib.sha256(data).digest()
    assert cut.format == "unknown"


def test_unpacking_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "MAX_UNPACKED_BYTES", 100)
    _, (record,) = read_all(write(tmp_path, "x.parquet.zst"))
    assert record.reason is Reason.CORRUPT_FILE and "unpack it first" in record.message


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, "x.jsonl")
    file = only(path)
    found = list(cuts(file, scan(file, SMALL), SMALL))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"x\.jsonl: changed while it was read"):
        list(records(found[-1], SMALL))


def test_format_is_detected_behind_bad_records_and_can_be_forced(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"garbage\n" * 100 + b"\n".join(RAW))
    assert {cut.format for cut in read_all(path)[0]} == {"prompt-completion"}
    forced = msgspec.structs.replace(SMALL, format="openai")
    assert {cut.format for cut in read_all(path, forced)[0]} == {"openai"}
    path.write_bytes(b'{"a": 1}\n' * 10)
    assert {cut.format for cut in read_all(path)[0]} == {"unknown"}


def test_progress_counts_the_bytes(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.json.gz"):
        path = write(tmp_path, name)
        seen: list[int] = []
        scan(only(path), SMALL, seen.append)
        assert sum(seen) == path.stat().st_size


def test_a_field_that_no_input_has_is_refused(tmp_path: Path) -> None:
    """Some files of an input may lack it; all of them lack it only where it is misspelt."""
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"traj": [{"role": "user", "content": "u"}]}\n')
    files = resolve_inputs([str(tmp_path)])
    check_messages_field(files, ReadOptions(messages_field="traj"))
    with pytest.raises(UserError, match="--messages-field trja"):
        check_messages_field(files, ReadOptions(messages_field="trja"))
