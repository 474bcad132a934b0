"""The unit of work: read, convert and commit one shard. The same function in this process and in a Ray actor."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from pipeline.convert import ShardConverter
from pipeline.grid.ids import TokenIds
from pipeline.grid.tokens import Tokenizer
from pipeline.plan.plan import Plans
from pipeline.read.containers import Record
from pipeline.read.cut import Cut, records
from pipeline.recipe import Recipe
from pipeline.store import commit
from pipeline.store.format import data_path, plans_path, quarantine_path
from pipeline.store.manifest import File, Shard, Source
from pipeline.store.place import Place
from pipeline.store.plans import StoredPlans

if TYPE_CHECKING:
    from jobs.teaching import Taught, TeacherSetup


class Setup(NamedTuple):
    """What every worker of a run needs; picklable."""

    recipe: Recipe
    tokenizer: Tokenizer
    ids: TokenIds
    out: Place
    #: The dataset whose plans are scheduled again, if any.
    plans: StoredPlans | None
    #: The engine that makes the plans, if a model makes them.
    teacher: TeacherSetup | None = None


class Task(NamedTuple):
    """One shard to convert."""

    number: int
    cut: Cut
    #: Bytes of the input file, as stored, that it stands for.
    input_bytes: int


class Done(NamedTuple):
    """A finished shard and what it cost."""

    number: int
    shard: Shard
    input_bytes: int
    #: The largest memory that the worker's process has had so far, in bytes.
    peak_rss: int
    #: How far the worker's teacher is, if it has one.
    taught: Taught | None = None


class ShardWorker:
    """Converts shards, one at a time; with a teacher, several threads may have shards planned at once."""

    def __init__(self, setup: Setup) -> None:
        # One worker is one core: threads of the tokenizer would only take it from the other workers.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._setup = setup
        self._converter = ShardConverter(setup.recipe, setup.tokenizer, setup.ids)
        self._converting = threading.Lock()
        self._teacher = None
        if setup.teacher is not None:
            from jobs.teaching import Teacher  # event loops and engines: only for who asks a model

            self._teacher = Teacher(setup.teacher, setup.recipe)

    def taught(self) -> Taught | None:
        """How far the teacher is."""
        return self._teacher.taught() if self._teacher is not None else None

    def close(self) -> None:
        """Let the teacher's engine go; shards that are being planned end with an error."""
        if self._teacher is not None:
            self._teacher.close()

    def run(self, task: Task) -> Done:
        """Convert one shard and commit it: its files first, the commit last."""
        setup, cut = self._setup, task.cut
        if self._teacher is None:
            plans = setup.plans.of(cut.file, cut.first, cut.count) if setup.plans is not None else None
            return self._convert(task, records(cut, setup.recipe.read), plans)
        found = list(records(cut, setup.recipe.read))
        plans = self._teacher.plan(task.number, cut.file, cut.format, found, task.input_bytes)
        with self._converting:
            done = self._convert(task, found, plans)
        self._teacher.finished(task.number)
        return done._replace(taught=self._teacher.taught())

    def _convert(self, task: Task, found: Iterable[Record], plans: Plans | None) -> Done:
        setup, cut, number = self._setup, task.cut, task.number
        files = self._converter.convert(cut.file, cut.format, found, plans)

        def put(path: str, data: bytes) -> File:
            setup.out.put(path, data)
            return File(path, len(data), hashlib.sha256(data).hexdigest())

        data = put(data_path(number), files.data)
        shard = Shard(
            path=data.path,
            rows=files.counts.rows,
            bytes=data.bytes,
            sha256=data.sha256,
            tokens=files.counts.tokens,
            plans=put(plans_path(number), files.plans),
            quarantine=put(quarantine_path(number), files.quarantine) if files.quarantine else None,
            source=Source(cut.file, cut.first, cut.count),
            counts=files.counts,
        )
        commit.write(setup.out, number, shard)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Done(number, shard, task.input_bytes, peak)


def is_same_shard(shard: Shard, cut: Cut) -> bool:
    """Whether a finished shard holds the records of a cut."""
    return shard.source == Source(cut.file, cut.first, cut.count)
