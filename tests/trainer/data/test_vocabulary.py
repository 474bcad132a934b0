"""A dataset and a model must mean the same by a token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.store.dataset import Dataset
from trainer.data import check_vocabulary


def test_a_model_with_a_row_for_every_id_is_taken(agents: Dataset) -> None:
    size = agents.manifest.tokenizer.vocab_size
    check_vocabulary(agents, size)  # silence and end lie behind: they get rows of their own
    check_vocabulary(agents, size + 100, Path(agents.place.path("tokenizer.json")))


def test_a_model_with_fewer_rows_is_refused(agents: Dataset) -> None:
    size = agents.manifest.tokenizer.vocab_size
    with pytest.raises(
        UserError, match=rf"ids go up to {size - 1}, but the model has {size - 1} embedding rows: convert"
    ):
        check_vocabulary(agents, size - 1)


def test_a_model_with_another_vocabulary_is_refused(agents: Dataset, tmp_path: Path) -> None:
    size = agents.manifest.tokenizer.vocab_size
    document = json.loads(agents.tokenizer.json)
    vocabulary = document["model"]["vocab"]
    one, two = sorted(vocabulary, key=vocabulary.get)[300:302]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (tmp_path / "swapped.json").write_text(json.dumps(document))
    with pytest.raises(
        UserError, match=r"2 of \d+ tokens have other ids than in .*swapped\.json: .* is 300 and 301 there"
    ):
        check_vocabulary(agents, size, tmp_path / "swapped.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(UserError, match=r"broken\.json: not a tokenizer"):
        check_vocabulary(agents, size, tmp_path / "broken.json")
