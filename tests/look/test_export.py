"""rows-jsonl: what is written is the dense view, and it is written whole or not at all."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_grids import Drawn, grids, recipe, write

from pipeline.errors import UserError
from pipeline.look.export import export_rows_jsonl
from pipeline.store.dataset import Dataset

RECIPE = recipe()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(grids(RECIPE.layout), max_size=4), max_size=3))
def test_lines_are_the_dense_view_turned(shards: list[list[Drawn]]) -> None:
    done: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = write(Path(folder) / "grids", RECIPE, shards)
        count = export_rows_jsonl(dataset, f"{folder}/out", done.append)
        lines = (Path(folder) / "out" / "dataset.jsonl").read_text().splitlines()
        assert [path.name for path in (Path(folder) / "out").iterdir()] == ["dataset.jsonl"]
        assert count == len(lines) == len(dataset)
        assert done == np.cumsum([len(shard) for shard in shards]).tolist()
        for line, grid in zip(map(json.loads, lines), dataset, strict=True):
            assert list(line) == ["num_rows", "token_ids"]
            assert line["num_rows"] == grid.num_rows
            assert line["token_ids"] == grid.dense().T.tolist()
            assert len(line["token_ids"]) == len(RECIPE.layout.streams)


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    dataset = write(tmp_path / "grids", RECIPE, [[]])
    (tmp_path / "dataset.jsonl").write_text("mine")
    with pytest.raises(UserError, match="exists already; delete it"):
        export_rows_jsonl(dataset, str(tmp_path))
    assert (tmp_path / "dataset.jsonl").read_text() == "mine"


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write(tmp_path / "grids", RECIPE, [[]])

    def fail(*_: object) -> None:
        raise UserError("cannot be read")

    monkeypatch.setattr(Dataset, "shard", fail)
    with pytest.raises(UserError, match="cannot be read"):
        export_rows_jsonl(dataset, str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    dataset = write(tmp_path / "grids", RECIPE, [[]])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*/file: cannot be written"):
        export_rows_jsonl(dataset, str(tmp_path / "file"))
    with pytest.raises(UserError, match="local directory"):
        export_rows_jsonl(dataset, "s3://bucket/out")
