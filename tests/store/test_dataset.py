"""A dataset on disk: opened with this project, and without it by whatever reads Parquet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import polars
import pyarrow.parquet as pq
import pytest
from samples import builtin, chat, make_dataset, message, raw

import pipeline
from pipeline.errors import UserError
from pipeline.grid.tokens import Tokenizer
from pipeline.store.format import SCHEMA
from pipeline.store.place import Place

CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": {}}}
RECORDS = [
    chat("Who? You?", "Me. Yes!", note="naïve"),
    {
        "messages": [
            message("user", "Go"),
            {"role": "assistant", "tool_calls": [CALL], "content": None},
            message("tool", "1", tool_call_id="c"),
            message("assistant", "Gone."),
        ]
    },
    chat("a", "b", "c", "d"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "chats.jsonl").write_bytes(b"\n".join(map(raw, RECORDS)))
    make_dataset(folder / "chats.jsonl", folder / "out", "agent", ["shard.records=2"])
    return folder / "out"


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[dict[str, Any]]:
    """The values, by way of this project."""
    ds = pipeline.open_dataset(str(folder))
    number = ds.layout.index()
    return [
        {
            "id": grid.id,
            "num_rows": grid.num_rows,
            "num_tokens": grid.num_tokens,
            "spans": [
                {"stream": number[s.stream], "start": s.start, "part": s.part, "tokens": s.tokens.tolist()}
                for s in grid.spans
            ],
            "parts": [part._asdict() for part in grid.parts],
            "source": grid.source,
            "meta": grid.meta,
        }
        for grid in ds
    ]


def test_every_text_is_there(expected: list[dict[str, Any]]) -> None:
    tokenizer = builtin()
    for row, record in zip(expected, RECORDS, strict=True):
        said = [""] * len(row["parts"])
        for span in row["spans"]:
            said[span["part"]] += tokenizer.decode(np.array(span["tokens"], np.int32))
        contents = [m["content"] or '{"name":"f","arguments":{}}' for m in record["messages"]]
        assert said == contents
    assert json.loads(expected[0]["meta"]) == {"note": "naïve"}


def test_datasets_reads_it(folder: Path, expected: list[dict[str, Any]], tmp_path: Path) -> None:
    files = sorted(str(path) for path in (folder / "data").iterdir())
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert list(loaded) == expected


def test_polars_reads_it(folder: Path, expected: list[dict[str, Any]]) -> None:
    assert polars.read_parquet(folder / "data" / "*.parquet").to_dicts() == expected


def test_duckdb_reads_it(folder: Path, expected: list[dict[str, Any]]) -> None:
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT * FROM '{folder}/data/*.parquet' ORDER BY filename, source.record")
        names = [column[0] for column in found.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        tokens = connection.execute(
            f"SELECT sum(len(s.tokens)) FROM (SELECT unnest(spans) AS s FROM '{folder}/data/*.parquet')"
        ).fetchone()
    assert [{name: row[name] for name in expected[0]} for row in rows] == expected
    assert tokens == (sum(row["num_tokens"] for row in expected),)


def test_a_lone_shard_explains_itself(folder: Path) -> None:
    schema = pq.read_schema(folder / "data" / "part-00000.parquet")
    assert schema.equals(SCHEMA, check_metadata=False)
    manifest = json.loads((folder / "dataset.json").read_text())
    assert schema.metadata[b"pipeline.format_version"] == b"1"
    assert json.loads(schema.metadata[b"pipeline.layout"]) == manifest["layout"]
    assert schema.metadata[b"pipeline.tokenizer_sha256"].decode() == manifest["tokenizer"]["sha256"]


def test_grids_by_number_from_both_ends_and_in_order(folder: Path) -> None:
    ds = pipeline.open_dataset(str(folder))
    assert len(ds) == 3
    ids = [f"chats.jsonl:{i}" for i in range(3)]
    assert [ds[i].id for i in range(3)] == [grid.id for grid in ds] == ids
    assert ds[-1].id == ids[2]
    for index in (3, -4):
        with pytest.raises(IndexError):
            ds[index]


def test_columns_are_the_same_grids_as_arrays(folder: Path) -> None:
    ds = pipeline.open_dataset(str(folder))
    grids = iter(ds)
    for columns in ds.columns():
        cells, offsets = columns.dense()
        for number in range(len(columns)):
            assert np.array_equal(cells[offsets[number] : offsets[number + 1]], next(grids).dense())


def test_silence_can_be_overridden_at_load_time(folder: Path) -> None:
    ds, other = pipeline.open_dataset(str(folder)), pipeline.open_dataset(str(folder), silence_id=7)
    new = ds.manifest.tokenizer.silence_id
    assert new == builtin().vocab_size
    dense = ds[0].dense()
    assert np.array_equal(np.where(dense == new, 7, dense), other[0].dense())


def test_a_clock_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / "clock.yaml").write_text(
        "name: clock\nstreams:\n- {name: user, kind: input}\n- {name: out, kind: output}\n"
        "- {name: clock, kind: input, clock: {every: 2, tick: ' the'}}\n"
        "roles: {system: user, user: user, think: drop, answer: out, call: drop, result: drop}\n"
    )
    (tmp_path / "chats.jsonl").write_bytes(raw(RECORDS[0]))
    make_dataset(tmp_path / "chats.jsonl", tmp_path / "out", "wait-k", [f"layout={tmp_path / 'clock.yaml'}"])
    dense = pipeline.open_dataset(str(tmp_path / "out"))[0].dense()
    tick = builtin().token_id(" the", "tick")
    assert set(dense[::2, 2].tolist()) == {tick}
    assert tick not in dense[1::2, 2].tolist()


def test_its_tokenizer_is_the_one_that_made_it(folder: Path) -> None:
    tokenizer = pipeline.open_dataset(str(folder)).tokenizer
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.sha256 == builtin().sha256


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda folder: (folder / "dataset.json").unlink(),
            r"no dataset: there is no dataset\.json in it\. A corpus must",
        ),
        (shutil.rmtree, "no dataset: it does not exist"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "dataset.json").write_text('{"format_version": 99}'), "format version 99"),
        (lambda folder: (folder / "dataset.json").write_text("{}"), "required"),
    ],
)
def test_what_is_no_dataset_is_a_user_error(damage: Any, said: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(UserError, match=said):
        pipeline.open_dataset(str(tmp_path / "copy"))


def test_a_corpus_and_an_unfinished_run_are_no_datasets_yet(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("{}\n")
    with pytest.raises(
        UserError, match=r"it is a file\. A corpus must be converted first: pipeline convert --input .*chats"
    ):
        pipeline.open_dataset(str(tmp_path / "chats.jsonl"))
    Place(str(tmp_path / "grids")).put("_work/identity.json", b"{}")
    with pytest.raises(UserError, match=r"it is an unfinished run.* goes on with its own command"):
        pipeline.open_dataset(str(tmp_path / "grids"))


@pytest.mark.parametrize("name", ["data/part-00001.parquet", "tokenizer.json"])
def test_a_file_that_is_gone_is_a_user_error_when_it_is_needed(name: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    ds = pipeline.open_dataset(str(tmp_path / "copy"))
    with pytest.raises(UserError, match=name.rpartition("/")[2]):
        _ = [grid.num_rows for grid in ds], ds.tokenizer
