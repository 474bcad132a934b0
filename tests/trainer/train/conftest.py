"""A dataset that the pipeline made, a tiny decoder for its tokenizer, and the command line in this process.

Models run on plain torch here: the kernels have tests of their own, and the interpreter takes its time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import Train, trainer
from running import ROOT, Ran, pipeline
from tiny import decoder

from trainer.attention import op


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the fixture of the same name one folder up."""
    monkeypatch.setattr(op, "launch", None)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other are slow where others compute too; and processes of their own have one as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 conversations in three streams."""
    made = tmp_path_factory.mktemp("data") / "grids"
    corpus = ROOT / "examples" / "corpus" / "reasoning.jsonl.zst"
    ran = pipeline("convert", "--input", corpus, "--recipe", "wait-k", "--out", made, "--ray", "off")
    assert ran.code == 0, ran.output
    return made


@pytest.fixture(scope="session")
def model(grids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose vocabulary is padded: silence and end (8192, 8193) are inside."""
    made = tmp_path_factory.mktemp("model")
    decoder(vocabulary=8256, tie_word_embeddings=True).save_pretrained(made)
    shutil.copy(grids / "tokenizer.json", made)
    return made


@pytest.fixture(scope="session")
def small(grids: Path, model: Path) -> list[str]:
    """Options of a small run, the same in every process."""
    settings = {
        "data.cells": 512,
        "data.packs_per_step": 2,
        "data.too_long": "drop",
        "data.cache": grids.parent / "cache",
    }
    settings |= {"optimizer.schedule": "constant", "optimizer.learning_rate": "1e-3", "optimizer.warmup_steps": 2}
    options = [f"--set={name}={value}" for name, value in settings.items()]
    return ["train", "--data", str(grids), "--model", str(model), "--device", "cpu", *options]


@pytest.fixture
def run(small: list[str]) -> Train:
    """Train, with further options; must succeed."""

    def train(out: Path, *options: str | Path) -> Ran:
        ran = trainer(*small, "--out", out, *options)
        assert ran.code == 0, ran.output
        return ran

    return train


@pytest.fixture
def command() -> Train:
    """Any command of the trainer."""
    return trainer
