"""Datasets that the converter made."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import ROOT, pipeline

import pipeline as package
from pipeline.store.dataset import Dataset


def convert(*arguments: str | Path, out: Path) -> Dataset:
    """Convert and open."""
    ran = pipeline("convert", *arguments, "--ray", "off", "--out", out)
    assert ran.code == 0, ran.output
    return package.open_dataset(str(out))


@pytest.fixture(scope="session")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The example corpus in seven streams; three shards."""
    out = tmp_path_factory.mktemp("agents") / "grids"
    return convert("--input", ROOT / "examples" / "corpus", "--recipe", "agent", out=out)
