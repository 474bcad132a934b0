"""A teacher in a worker: one engine and one event loop in a thread of its own, shared by the shards that are planned at once.

While the last conversations of one shard are waiting for their answers, those of the next keep the engine full.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import NamedTuple

from pipeline.engines.protocol import Model
from pipeline.engines.spec import EngineSpec
from pipeline.errors import UserError
from pipeline.plan.plan import Plans
from pipeline.read.containers import Record
from pipeline.recipe import Recipe
from pipeline.teach.build import build_asker
from pipeline.teach.counters import Counters
from pipeline.teach.shard import ShardTeacher

#: Shards that one worker plans at a time.
SHARDS_AT_ONCE = 2
_GRACE_SECONDS = 20.0


class TeacherSetup(NamedTuple):
    """What a worker needs to have an engine; picklable."""

    engine: EngineSpec
    #: What the run's identity says answers. An engine that turns out to hold another model is refused.
    model: Model
    answers: str
    #: How many times the recipe's attempts a question may be asked.
    rounds: int = 1
    #: The driver's mark in ``answers``, where workers are elsewhere (:mod:`jobs.shared_folder`).
    mark: str | None = None


class Taught(NamedTuple):
    """How far a worker's teacher is."""

    #: Tells one worker from another, also from the one that it has replaced.
    worker: str
    counters: Counters
    #: Parts of shards that are planned but not finished, in bytes of input.
    planned_bytes: float
    #: Lines of the answer store that it could not use: how many, and the first ones with what is wrong with them.
    fault_count: int = 0
    faults: tuple[str, ...] = ()
    #: Why the engine does not answer at present; empty where it does.
    trouble: str = ""
    #: Later news of a worker has a higher number.
    number: int = 0


class Teacher:
    """Plans shards; :meth:`plan` is called from several threads."""

    def __init__(self, setup: TeacherSetup, recipe: Recipe) -> None:
        prompt = recipe.prompt
        assert prompt is not None and recipe.teacher is not None
        self._name = uuid.uuid4().hex
        self._planned: dict[int, float] = {}
        self._closed = False
        self._closing = threading.Lock()
        spec = setup.engine
        # What can fail comes first, and what must be let go afterwards: nothing of it is left where this raises.
        self._shards = ShardTeacher(recipe, lambda _: self._asker.conversation(prompt), spec.concurrency)
        self._asker, self._store = build_asker(spec, recipe, setup.model, setup.answers, setup.rounds)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher", daemon=True)
        self._thread.start()

    def plan(self, number: int, file: str, format_name: str, records: Sequence[Record], input_bytes: int) -> Plans:
        """The plans of one shard, which stands for ``input_bytes`` of input."""
        self._planned[number] = 0.0

        def planned() -> None:
            self._planned[number] += input_bytes / len(records)

        with self._closing:  # what is begun before it closes is cancelled; afterwards nobody would ever answer
            if self._closed:
                raise UserError("stopped")
            work = self._shards.plan(file, format_name, records, planned)
            planning = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return planning.result()
        except CancelledError:
            raise UserError("stopped") from None

    def finished(self, number: int) -> None:
        """A shard is committed: what was planned of it is now counted as done."""
        self._planned.pop(number, None)

    def taught(self) -> Taught:
        """How far it is."""
        faults = tuple(map(str, self._store.faults))
        planned = sum(self._planned.values())
        asker, store, now = self._asker, self._store, time.monotonic_ns()
        return Taught(self._name, asker.counters(), planned, store.fault_count, faults, asker.trouble, now)

    def close(self) -> None:
        """Stop whatever is asked, and let the engine go."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        with suppress(TimeoutError, asyncio.CancelledError):
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(_GRACE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_GRACE_SECONDS)
        if not self._thread.is_alive():  # else what hangs there is left to the end of the process
            self._loop.close()

    async def _shut(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._asker.close()
        await self._store.close()
