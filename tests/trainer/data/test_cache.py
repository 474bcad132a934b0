"""The decoded dataset: what the grids are, made once, shared, whole or not there."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.conftest import convert
from data.reference import of_dataset
from running import write_lines

import pipeline
from pipeline.errors import UserError
from pipeline.store.dataset import Dataset
from trainer.data import cache
from trainer.data.cache import Decoded, decode, manifest_hash


def grids_of(decoded: Decoded, numbers: list[int]) -> list[tuple[int, dict[int, list[tuple[int, list[int]]]]]]:
    """Rows and spans of every grid."""
    taken = decoded.take(np.array(numbers))
    bounds = np.concatenate([[0], np.cumsum(taken.length)]).tolist()
    found: list[tuple[int, dict[int, list[tuple[int, list[int]]]]]] = [(rows, {}) for rows in taken.num_rows.tolist()]
    for span in range(len(taken.length)):
        tokens = taken.tokens[bounds[span] : bounds[span + 1]].tolist()
        own = found[taken.conversation[span]][1]
        own.setdefault(int(taken.stream[span]), []).append((int(taken.start[span]), tokens))
    return found


def test_it_holds_the_grids_in_any_order(agents: Dataset, tmp_path: Path) -> None:
    decoded = decode(agents, str(tmp_path))
    grids, _ = of_dataset(agents)
    assert len(decoded) == len(grids)
    order = np.random.default_rng(0).permutation(len(grids)).tolist()
    assert grids_of(decoded, order) == [(grids[i].num_rows, grids[i].spans) for i in order]
    lengths_only = decoded.take(np.array(order), tokens=False)
    assert lengths_only.tokens.size == 0
    assert np.array_equal(lengths_only.length, decoded.take(np.array(order)).length)


def test_it_is_made_once(agents: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode(agents, str(tmp_path))
    monkeypatch.setattr(Dataset, "shard", lambda *_: pytest.fail("decoded again"))
    decoded = decode(agents, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{manifest_hash(agents)}-1", "lock"]
    array: np.ndarray | None = decoded.tokens
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    assert array is not None, "not memory-mapped"


def test_it_is_below_the_dataset_and_older_ones_go(tmp_path: Path) -> None:
    folder = tmp_path / "grids"
    first = convert("--input", write_lines(tmp_path / "a.jsonl", 5), out=folder)
    decode(first)
    old = folder / "_cache" / f"{manifest_hash(first)}-1"
    assert old.is_dir()
    second = convert("--input", write_lines(tmp_path / "a.jsonl", 6), "--fresh", out=folder)
    with pytest.raises(UserError, match=r"dataset\.json: changed or gone since the dataset was opened"):
        decode(first)
    assert [path.name for path in (folder / "_cache").iterdir() if path.name != "lock"] in ([], [old.name])
    assert len(decode(second)) == 6
    assert not old.exists()
    assert pipeline.open_dataset(str(folder)).manifest == second.manifest


def test_it_is_in_the_users_folder_where_the_dataset_cannot_be_written(
    agents: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "grids"
    shutil.copytree(agents.place.path(), folder, ignore=shutil.ignore_patterns("_cache"))
    (folder / "_cache").write_text("in the way, as a right that is missing would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    dataset = pipeline.open_dataset(str(folder))
    assert len(decode(dataset)) == len(agents)
    assert (tmp_path / "home" / "multistream-trainer" / f"{manifest_hash(dataset)}-1").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"^data\.cache: .*cannot be written: .*/file/below: .*; give another folder with data\.cache"
    ):
        decode(dataset, str(tmp_path / "file" / "below"))


def _decode(location: str, folder: str, ready: object) -> None:
    dataset = pipeline.open_dataset(location)
    ready.wait()  # type: ignore[attr-defined]
    assert len(decode(dataset, folder)) == len(dataset)


@pytest.mark.parametrize("locks", [True, False])
def test_two_ranks_may_come_at_once(
    locks: bool, agents: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With locks one of them waits; without, both write, and the slower throws its own away."""

    def no_locks(*_: object) -> None:
        raise OSError("no locks here")

    if not locks:
        monkeypatch.setattr(cache.fcntl, "flock", no_locks)
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(3)
    ranks = [context.Process(target=_decode, args=(agents.place.path(), str(tmp_path), ready)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{manifest_hash(agents)}-1", "lock"]


def test_a_failure_leaves_nothing_and_old_leftovers_go(
    agents: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / ".x.tmp"
    left.mkdir()
    day = time.time() - 2 * cache._STALE_SECONDS
    os.utime(left, (day, day))
    young = tmp_path / ".y.tmp"
    young.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_shard", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decode(agents, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".y.tmp", "lock"]
    assert len(decode(agents, str(tmp_path))) == len(agents)


def test_a_shard_that_is_not_what_the_manifest_says_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "grids"
    lines = write_lines(tmp_path / "a.jsonl", 6)
    dataset = convert("--input", lines, "--set", "shard.records=3", out=folder)
    shard = folder / "data" / "part-00001.parquet"
    table = pq.read_table(shard)
    spans = table["spans"].to_pylist()
    spans[0][0]["tokens"].reverse()  # as many as before, and others
    place = table.schema.get_field_index("spans")
    changed = table.set_column(place, table.field(place), pa.array(spans, table.field(place).type))
    pq.write_table(changed, shard)
    with pytest.raises(
        UserError, match=r"part-00001\.parquet: not the file that the manifest says .*'pipeline validate'"
    ):
        decode(dataset)
    shard.unlink()
    with pytest.raises(UserError, match=r"part-00001\.parquet"):
        decode(dataset)
    assert [path.name for path in (folder / "_cache").iterdir()] == ["lock"]


def test_a_damaged_cache_is_named(agents: Dataset, tmp_path: Path) -> None:
    decode(agents, str(tmp_path))
    (tmp_path / f"{manifest_hash(agents)}-1" / "tokens.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"^data\.cache: .*cannot be read: .*; delete it, and it will be made again"):
        decode(agents, str(tmp_path))


LONG = {
    "messages": [
        {"role": role, "content": f"{text} {i} and a few words more."}
        for i in range(4)
        for role, text in (("user", "Question"), ("assistant", "Answer"))
    ]
}
SHORT = {"messages": LONG["messages"][:2]}


@pytest.mark.parametrize("claim", [False, True])
def test_a_truncated_conversation_is_cut_short(claim: bool, tmp_path: Path) -> None:
    """Also where the corpus has a field of that name; and what the corpus says there of others changes nothing."""
    said = {"truncated": {"turns_kept": 1, "turns": 9}} if claim else {}
    lines = [SHORT | said, LONG | said, SHORT]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--set", "rows.max=60", "--set", "rows.long=truncate"]
    dataset = convert("--input", tmp_path / "a.jsonl", *options, out=tmp_path / "grids")
    assert ("_truncated" in json.loads(dataset[1].meta)) == claim
    assert decode(dataset).cut_short.tolist() == [False, True, False]


def test_a_window_is_cut_short_where_another_follows(tmp_path: Path) -> None:
    lines = [SHORT, LONG, LONG, SHORT]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--set", "rows.max=60", "--set", "rows.long=window"]
    dataset = convert("--input", tmp_path / "a.jsonl", *options, out=tmp_path / "grids")
    ids = [grid.id for grid in dataset]
    windows = [id_ for id_ in ids if "#" in id_]
    assert len(windows) >= 4
    last = {id_.partition("#")[0]: id_ for id_ in ids}
    decoded = decode(dataset)
    assert decoded.cut_short.tolist() == [id_ != last[id_.partition("#")[0]] for id_ in ids]
    by_record = dict(zip(ids, decoded.record_hash.tolist(), strict=True))
    assert len({by_record[id_] for id_ in windows if id_.startswith("a.jsonl:1#")}) == 1
    assert len(set(decoded.id_hash.tolist())) == len(ids)
