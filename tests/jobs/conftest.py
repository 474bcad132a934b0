"""A corpus in many small shards, the dataset that an undisturbed run makes of it, and one Ray cluster for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from running import Made, contents, free_port, pipeline, start_cluster, write_corpus


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Twelve shards from three kinds of files, two of them with quarantine."""
    return _make(tmp_path_factory.mktemp("small"), write_corpus, 40, 10)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Enough work to be killed in: some seconds of it."""
    return _make(tmp_path_factory.mktemp("large"), lambda folder, n: write_corpus(folder, n, words=250), 2000, 100)


def _make(folder: Path, write: Callable[[Path, int], Path], count: int, records: int) -> Made:
    corpus = write(folder / "corpus", count)
    options = ["convert", "--input", str(corpus), "--set", f"shard.records={records}"]
    ran = pipeline(*options, "--out", folder / "out", "--ray", "off")
    assert ran.code == 0, ran.output
    return Made(options, contents(folder / "out"))


@pytest.fixture(scope="session")
def dashboard_port() -> int:
    """Where the cluster's dashboard listens, if it has one."""
    return free_port()


@pytest.fixture(scope="session")
def cluster(dashboard_port: int) -> Iterator[str]:
    """The address of a Ray cluster of four CPUs that some other process has started."""
    with start_cluster(4, dashboard_port if find_spec("aiohttp_cors") else None) as address:
        yield address


@pytest.fixture(scope="session")
def dashboard(cluster: str, dashboard_port: int) -> str:
    """Where jobs are submitted to the cluster."""
    pytest.importorskip("aiohttp_cors", reason="needs ray[default]")
    return f"http://127.0.0.1:{dashboard_port}"
