"""The same bytes come out whatever the number of workers, with and without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import Made, assert_same, spawned


def test_in_a_process_of_its_own(small: Made, tmp_path: Path) -> None:
    ran = spawned(*small.options, "--out", tmp_path / "out", "--ray", "off")
    assert ran.code == 0, ran.output
    assert_same(tmp_path / "out", small.contents)


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_on_a_cluster(small: Made, cluster: str, tmp_path: Path, workers: int) -> None:
    ran = spawned(*small.options, "--out", tmp_path / "out", "--ray", cluster, "--workers", str(workers))
    assert ran.code == 0, ran.output
    assert_same(tmp_path / "out", small.contents)


@pytest.mark.ray
def test_on_ray_started_here_without_noise(small: Made, tmp_path: Path) -> None:
    """Ray has much to say; a user sees the run's own lines and nothing else."""
    ran = spawned(*small.options, "--out", tmp_path / "out", "--ray", "local", "--workers", "2")
    assert ran.code == 0, ran.output
    assert_same(tmp_path / "out", small.contents)
    first, *rest = ran.output.splitlines()
    assert first.startswith("converting") and first.endswith("2 workers, Ray on this machine")
    assert rest[0].strip() == "120  records read"
    assert not any(word in ran.output for word in ("INFO", "WARNING", "Warning", "raylet", "pid="))
