"""What the pool does when things go wrong: with a worker, with a shard, with the cluster."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from running import Made, free_port, pipeline, small_disk, spawned, write_lines

from jobs.pool import ATTEMPTS, RayPool, _Slot
from jobs.shard import Done, Setup, Task
from pipeline.errors import UserError
from pipeline.grid.ids import token_ids
from pipeline.grid.tokens import load_tokenizer
from pipeline.read.cut import cut_all
from pipeline.read.inputs import resolve_inputs
from pipeline.read.scan import scan
from pipeline.recipe import load_recipe
from pipeline.store.place import Place

pytestmark = pytest.mark.ray


class DeadlyPlace(Place):
    """Kills the worker that writes shard 3: ``times`` times, counted in files beside the dataset."""

    times = 0

    def put(self, name: str, data: bytes) -> None:
        deaths = Path(f"{self.location}.deaths")
        if name.startswith("data/part-00003"):
            died = int(deaths.read_text()) if deaths.exists() else 0
            if died < self.times:
                deaths.write_text(str(died + 1))
                os.kill(os.getpid(), signal.SIGKILL)
        super().put(name, data)


class TwiceDeadlyPlace(DeadlyPlace):
    times = 2


class AlwaysDeadlyPlace(DeadlyPlace):
    times = 1_000_000


class BrokenPlace(Place):
    """Has a bug."""

    def put(self, name: str, data: bytes) -> None:
        raise ZeroDivisionError("a bug")


@pytest.fixture
def pool(cluster: str) -> Iterator[RayPool]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not have this file
    with RayPool(cluster, 2, print) as made:
        yield made


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    """Eight shards."""
    read = load_recipe("wait-k", ["shard.records=5"]).read
    files = resolve_inputs([str(write_lines(tmp_path / "chats.jsonl", 40))])
    return [
        Task(number, cut, 1) for number, cut in enumerate(cut_all(files, [scan(file, read) for file in files], read))
    ]


def _setup(place: Place) -> Setup:
    recipe, tokenizer = load_recipe("wait-k"), load_tokenizer("builtin")
    place.put("_work/identity.json", b"{}")
    return Setup(recipe, tokenizer, token_ids(recipe.layout, tokenizer), place, None)


def test_a_shard_that_ends_its_worker_twice_is_done_by_the_third(
    pool: RayPool, tasks: list[Task], tmp_path: Path
) -> None:
    done = list(pool.run(_setup(TwiceDeadlyPlace(str(tmp_path / "out"))), tasks))
    assert sorted(result.number for result in done) == list(range(8))
    assert pool.lost == 2


def test_a_shard_that_ends_every_worker_stops_the_run_and_is_named(
    pool: RayPool, tasks: list[Task], tmp_path: Path
) -> None:
    """The shards that wait behind it in the same worker die as often, and are not to blame."""
    done: list[Done] = []
    with pytest.raises(UserError, match=r"^chats.jsonl: records 15 to 19 ended their worker 5 times") as stopped:
        for result in pool.run(_setup(AlwaysDeadlyPlace(str(tmp_path / "out"))), tasks):
            done.append(result)
    print(stopped.value)
    assert "\n" not in str(stopped.value) and "Finished shards are kept" in str(stopped.value)
    assert pool.lost == ATTEMPTS
    assert len(done) >= 3


def test_a_node_that_does_not_see_the_output(pool: RayPool, tasks: list[Task], tmp_path: Path) -> None:
    setup = _setup(Place(str(tmp_path / "out")))
    Path(tmp_path, "out", "_work", "identity.json").unlink()
    with pytest.raises(UserError, match=r"does not see this directory\. On a cluster, use a shared file system"):
        list(pool.run(setup, tasks))


def test_a_bug_is_not_hidden(pool: RayPool, tasks: list[Task], tmp_path: Path) -> None:
    """A bug in a worker comes with the worker's traceback, at once and not after five attempts."""
    Place(str(tmp_path / "out")).put("_work/identity.json", b"{}")
    setup = _setup(Place(str(tmp_path / "out")))._replace(out=BrokenPlace(str(tmp_path / "out")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(pool.run(setup, tasks))


def test_a_busy_cluster_is_waited_for(
    pool: RayPool, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else has all CPUs. That is said, and the run goes on when they are free."""
    monkeypatch.setattr("jobs.pool._PATIENCE", 0.5)

    @ray.remote(num_cpus=4)
    class Busy:
        def begin(self) -> None: ...

    busy = Busy.remote()
    ray.get(busy.begin.remote())
    said: list[str] = []

    def notice(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            ray.kill(busy)

    pool._notice = notice
    done = list(pool.run(_setup(Place(str(tmp_path / "out"))), tasks))
    assert len(done) == len(tasks)
    assert said[:2] == ["waiting for a worker: 0 of the cluster's 4 CPUs are free"] * 2


def test_nothing_to_do_starts_no_worker(pool: RayPool, tmp_path: Path) -> None:
    assert list(pool.run(_setup(Place(str(tmp_path / "out"))), [])) == []


def test_no_more_workers_are_started_than_there_are_tasks(
    pool: RayPool, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[None] = []
    begin = _Slot._begin

    def count(slot: _Slot) -> None:
        started.append(None)
        begin(slot)

    monkeypatch.setattr(_Slot, "_begin", count)
    (done,) = pool.run(_setup(Place(str(tmp_path / "out"))), tasks[:1])
    assert done.number == tasks[0].number
    assert pool.workers > len(started) == 1


def test_a_worker_that_cannot_write_is_one_clear_message(small: Made, cluster: str, tmp_path: Path) -> None:
    """The disk of the output is full, as a worker finds out."""
    with small_disk(tmp_path / "disk", 300_000) as disk:
        ran = spawned(*small.options, "--out", disk / "out", "--ray", cluster, "--workers", "2")
    assert ran.code == 2
    assert "the disk is full. Free some space and run the same command again" in ran.output
    assert "Traceback" not in ran.output and ran.output.count("Error:") == 1


def test_more_workers_than_the_cluster_has(small: Made, cluster: str, tmp_path: Path) -> None:
    ran = spawned(*small.options, "--out", tmp_path / "out", "--ray", cluster, "--workers", "9")
    assert ran.code == 2
    assert "--workers 9: each worker takes one CPU, and the Ray cluster has 4; 5 missing. Use --workers 4" in ran.output
    assert "Traceback" not in ran.output


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "nowhere.invalid:6379", "ray://127.0.0.1:{port}", "head"])
def test_no_cluster_at_the_address(small: Made, tmp_path: Path, address: str) -> None:
    """Ray itself would try for two minutes."""
    address = address.format(port=free_port())
    began = time.monotonic()
    ran = pipeline(*small.options, "--out", tmp_path / "out", "--ray", address)
    assert ran.code == 2 and time.monotonic() - began < 10
    assert f"--ray {address}: no Ray cluster answers there" in ran.output
    assert not Path(tmp_path, "out", "data").exists()
