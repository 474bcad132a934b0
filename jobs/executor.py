"""Where shards are converted: in this process, or in a pool that some other module brings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, Self

from jobs.shard import Done, Setup, ShardWorker, Task


class Executor(Protocol):
    """Runs tasks and yields them as they finish, in any order; takes new ones only as fast as it finishes old ones."""

    #: Where shards are converted, in words for the progress line.
    description: str
    #: Attempts that were lost with their workers.
    lost: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def run(self, setup: Setup, tasks: Iterable[Task]) -> Iterator[Done]:
        """Convert and commit every task."""
        ...


class InProcess:
    """One shard after another, in this process (``--ray off``)."""

    description = "in this process"
    lost = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def run(self, setup: Setup, tasks: Iterable[Task]) -> Iterator[Done]:
        """Convert and commit every task."""
        worker = ShardWorker(setup)
        for task in tasks:
            yield worker.run(task)
