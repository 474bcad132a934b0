"""What decides the bytes is checked where it could slip: damaged datasets, changed inputs, ids, notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples import builtin, chat, raw

import pipeline
from jobs.progress import Progress
from jobs.run import RunOptions, run
from pipeline.errors import UserError
from pipeline.grid.ids import token_ids
from pipeline.layout_file import load_layout
from pipeline.read.inputs import resolve_inputs
from pipeline.recipe import load_recipe
from pipeline.store import commit
from pipeline.store.validate import validate

RECORDS = [raw(chat("Hello. Are you there?", f"Yes, {i}. I am.", "Good.", "Fine. " * 9)) for i in range(40)]


def options(corpus: Path, out: Path, *settings: str, **more: Any) -> RunOptions:
    return RunOptions(
        files=resolve_inputs([str(corpus)]),
        out=str(out),
        recipe=load_recipe("wait-k", ["shard.records=10", *settings]),
        tokenizer=builtin(),
        ray="off",
        **more,
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(b"\n".join(RECORDS) + b"\n")
    return path


@pytest.mark.parametrize("name", ["data/part-00002.parquet", "plans/part-00000.jsonl.zst", "tokenizer.json"])
@pytest.mark.parametrize("how", ["longer", "gone"])
def test_a_damaged_dataset_is_mended_by_its_own_command(corpus: Path, tmp_path: Path, name: str, how: str) -> None:
    out = tmp_path / "out"
    run(options(corpus, out), Progress())
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "run.json"}
    assert run(options(corpus, out), Progress()).converted_shards == 0
    if how == "gone":
        (out / name).unlink()
    else:
        (out / name).write_bytes((out / name).read_bytes() + b"x")
    assert run(options(corpus, out), Progress()).converted_shards == (0 if name == "tokenizer.json" else 1)
    assert {path: path.read_bytes() for path in whole} == whole


def test_an_input_that_changes_while_it_is_read_makes_no_dataset(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest would sign new text with the old hash."""
    begin = commit.begin

    def rewrite(*arguments: Any) -> None:
        corpus.write_bytes(corpus.read_bytes().replace(b"Hello", b"Howdy"))
        begin(*arguments)

    monkeypatch.setattr(commit, "begin", rewrite)
    with pytest.raises(UserError, match=r"chats\.jsonl: changed while it was read"):
        run(options(corpus, tmp_path / "out"), Progress())
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_shards_of_another_make_are_not_mixed_in(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(commit, "finish", stop)
        patched.setattr(commit, "software", lambda: {"pyarrow": "1"})
        with pytest.raises(KeyboardInterrupt):
            run(options(corpus, out), Progress())
    assert run(options(corpus, out), Progress()).converted_shards == 4


def test_a_note_of_ours_takes_no_field_of_the_corpus(tmp_path: Path) -> None:
    record = raw(chat("Hi.", "Hello there.", "More, please.", "One two three. " * 30, truncated="said by the corpus"))
    (tmp_path / "chats.jsonl").write_bytes(record)
    made = options(tmp_path / "chats.jsonl", tmp_path / "out", "rows.max=20", "rows.long=truncate")
    assert run(made, Progress()).manifest.counts.truncated == 1
    meta = json.loads(pipeline.open_dataset(str(tmp_path / "out"))[0].meta)
    assert meta["truncated"] == "said by the corpus"
    assert meta["_truncated"]["turns_kept"] == 1
    assert validate(str(tmp_path / "out")).ok


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"silence": "<|endoftext|>", "end": "<|endoftext|>"}, "stands for silence already"),
        (
            {"silence": " the", "streams": [{"name": "c", "kind": "input", "clock": {"every": 2, "tick": " the"}}]},
            "its tick is the token that stands for silence",
        ),
    ],
)
def test_silence_is_a_token_of_its_own(change: dict[str, Any], message: str) -> None:
    document = load_layout("chat-2").to_dict()
    streams = [*document["streams"], *change.pop("streams", [])]
    with pytest.raises(UserError, match=message):
        token_ids(load_layout({**document, **change, "streams": streams}), builtin())


def test_the_manifest_names_what_its_bytes_depend_on(corpus: Path, tmp_path: Path) -> None:
    made = run(options(corpus, tmp_path / "out"), Progress()).manifest
    assert set(made.software) == {"pipeline", "python", "msgspec", "numpy", "pyarrow", "tokenizers", "zstandard"}
