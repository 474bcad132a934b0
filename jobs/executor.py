"""Where shards are converted: in this process, or in a pool that some other module brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING, Protocol, Self

from jobs.shard import Done, Setup, ShardWorker, Task

if TYPE_CHECKING:
    from jobs.teaching import Taught

#: Seconds between two looks at how far the teachers are.
LOOK_EVERY = 1.0


class Executor(Protocol):
    """Runs tasks and yields them as they finish, in any order; takes new ones only as fast as it finishes old ones."""

    #: Where shards are converted, in words for the progress line.
    description: str
    #: How many shards are worked on at the same time.
    workers: int
    #: GPUs of each.
    gpus: int
    #: Attempts that were lost with their workers.
    lost: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def run(self, setup: Setup, tasks: Iterable[Task]) -> Iterator[Done]:
        """Convert and commit every task."""
        ...


class InProcess:
    """One shard after another, in this process (``--ray off``); a teacher has the next one to plan meanwhile."""

    description = "in this process"
    workers = 1
    lost = 0

    def __init__(self, taught: Callable[[Taught], None], gpus: int) -> None:
        """``taught`` is told how far the teacher is, if there is one; ``gpus``: those that its engine takes."""
        self._taught = taught
        self.gpus = gpus

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def run(self, setup: Setup, tasks: Iterable[Task]) -> Iterator[Done]:
        """Convert and commit every task."""
        worker = ShardWorker(setup)
        if setup.teacher is not None:
            yield from self._side_by_side(worker, iter(tasks))
            return
        for task in tasks:
            yield worker.run(task)

    def _side_by_side(self, worker: ShardWorker, tasks: Iterator[Task]) -> Iterator[Done]:
        from jobs.teaching import SHARDS_AT_ONCE

        with ThreadPoolExecutor(SHARDS_AT_ONCE, "shard") as threads:
            running: set[Future[Done]] = set()
            try:
                while True:
                    running |= {
                        threads.submit(worker.run, task) for task in islice(tasks, SHARDS_AT_ONCE - len(running))
                    }
                    if not running:
                        return
                    done, running = wait(running, LOOK_EVERY, FIRST_COMPLETED)
                    taught = worker.taught()
                    if taught is not None:
                        self._taught(taught)
                    for future in done:
                        yield future.result()
            finally:
                worker.close()
