"""A pool of Ray actors: a bounded window of shards, retries, actors replaced when they die.

Ray keeps the workers alive and moves the bytes; which shard is done is decided by its commit on disk alone, so no crash
anywhere can lose or double one.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import ray
from ray.exceptions import RayActorError, RayTaskError

from jobs.shard import Done, Setup, ShardWorker, Task
from pipeline.errors import UserError
from pipeline.store.format import WORK
from pipeline.store.place import Place

#: A shard that kills its worker this often stops the run: trying on would never end.
ATTEMPTS = 5
#: Shards that are handed to one actor ahead of time, so that it never waits for the driver.
_WINDOW_PER_ACTOR = 2


class RayPool:
    """Shards over ``workers`` actors of one CPU each, on a cluster or on this machine."""

    def __init__(self, address: str, workers: int | None) -> None:
        """``address``: ``local`` to start Ray here, ``auto`` for a running cluster, or the address of one.

        Raises :class:`UserError` where there is no such cluster, or where it is too small.
        """
        _connect(address, workers)
        cpus = int(ray.cluster_resources().get("CPU", 0))
        self.workers = workers or max(cpus, 1)
        if self.workers > cpus:
            ray.shutdown()
            raise UserError(
                f"--workers {self.workers}: each worker takes one CPU, and the Ray cluster has {cpus}; "
                f"{self.workers - cpus} are missing. Use --workers {cpus} or add nodes"
            )
        where = "Ray on this machine" if address == "local" else f"Ray cluster of {len(ray.nodes())} nodes"
        self.description = f"{self.workers} workers, {where}"
        #: Attempts that were lost with their workers.
        self.lost = 0

    def run(self, setup: Setup, tasks: Iterable[Task]) -> Iterator[Done]:
        """Convert and commit every task."""
        shared = ray.put(setup)
        actors = [_Worker.remote(shared) for _ in range(self.workers)]
        try:
            _check_shared(actors, setup.out)
            yield from self._run(shared, actors, tasks)
        finally:
            for actor in actors:
                ray.kill(actor)

    def _run(self, shared: Any, actors: list[Any], tasks: Iterable[Task]) -> Iterator[Done]:
        running: dict[Any, _Attempt] = {}  # by the result that it will give
        load = [0] * len(actors)
        again: list[tuple[Task, int]] = []
        pending = iter(tasks)

        while True:
            while min(load) < _WINDOW_PER_ACTOR:
                task, count = again.pop() if again else (next(pending, None), 1)
                if task is None:
                    break
                slot = load.index(min(load))
                load[slot] += 1
                running[actors[slot].run.remote(task)] = _Attempt(task, count, slot, actors[slot])
            if not running:
                return
            (result,), _ = ray.wait(list(running), num_returns=1)
            attempt = running.pop(result)
            load[attempt.slot] -= 1
            try:
                done: Done = ray.get(result)
            except RayActorError as error:
                self.lost += 1
                if attempt.count == ATTEMPTS:
                    raise UserError(_gave_up(attempt.task, error)) from None
                again.append((attempt.task, attempt.count + 1))
                if actors[attempt.slot] is attempt.actor:  # the first of its tasks to come back
                    actors[attempt.slot] = _Worker.remote(shared)
            except RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause)) from None
                raise
            else:
                yield done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        ray.shutdown()  # stops Ray where it was started here


class _Attempt(NamedTuple):
    """A task that an actor has."""

    task: Task
    count: int
    slot: int
    actor: Any


@ray.remote(num_cpus=1)
class _Worker:
    """A shard worker in a Ray actor."""

    def __init__(self, setup: Setup) -> None:
        self._worker = ShardWorker(setup)

    def run(self, task: Task) -> Done:
        return self._worker.run(task)

    def sees(self, out: Place, name: str) -> tuple[bool, str]:
        """Whether this worker's node sees a file that the driver wrote, and the node's name."""
        return out.get(name) is not None, socket.gethostname()


def _connect(address: str, workers: int | None) -> None:
    """Start or join a cluster, quietly."""
    # Usage reports and authentication are the cluster's business; a cluster that is started here needs neither.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == "local":
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            ray.init(address="local", num_cpus=workers or os.cpu_count(), include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--ray {address}: no Ray cluster answers there ({error}). "
            f"Use --ray local to start one on this machine, or --ray off to convert in this process"
        ) from None


def _check_shared(actors: Sequence[Any], out: Place) -> None:
    """Fail before any work where a worker's node does not see what the driver writes."""
    probe = f"{WORK}/identity.json"
    for seen, host in ray.get([actor.sees.remote(out, probe) for actor in actors]):
        if not seen:
            raise UserError(
                f"--out {out}: the node '{host}' does not see this directory. "
                f"On a cluster, use a shared file system or a URL such as s3://bucket/grids"
            )


def _gave_up(task: Task, error: Exception) -> str:
    cut = task.cut
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{cut.file}: records {cut.first} to {cut.first + cut.count - 1} ended their worker {ATTEMPTS} times ({reason}). "
        f"A worker that runs out of memory ends like this: try --set shard.bytes=4000000. Finished shards are kept"
    )
