"""A pool of Ray actors: a bounded window of shards, retries, actors replaced when they die.

Ray keeps the workers alive and moves the bytes; which shard is done is decided by its commit on disk alone, so no crash
anywhere can lose or double one.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from jobs.executor import LOOK_EVERY
from jobs.shard import Done, Setup, ShardWorker, Task
from jobs.shared_folder import check_seen, marked
from pipeline.engines.spec import EngineSpec
from pipeline.errors import UserError
from pipeline.store.format import IDENTITY

if TYPE_CHECKING:
    from jobs.teaching import Taught

#: A shard that ends its worker this often stops the run: trying on would never end. So do workers that never start.
ATTEMPTS = 5
#: Shards that are handed to one actor ahead of time, so that it never waits for the driver. A teacher has them planned
#: side by side.
_WINDOW_PER_ACTOR = 2
#: Workers that talk to a server wait most of the time: so many keep any server busy.
_TALKERS = 4
#: As many as are started where nobody says how many: a cluster may grow without end.
_MOST_WORKERS = 1024
#: After this many seconds without any worker it is said what is waited for, and again each time.
_PATIENCE = 30.0
#: Where an autoscaler has no limit.
_ENDLESS = 1 << 20


class RayPool:
    """Shards over ``workers`` actors, on a cluster or on this machine: one CPU each, and the GPUs of its engine."""

    def __init__(
        self,
        address: str,
        workers: int | None,
        notice: Callable[[str], None],
        taught: Callable[[Taught], None] = lambda _: None,
        engine: EngineSpec | None = None,
    ) -> None:
        """``address``: ``local`` to start Ray here, or the address of a cluster that answers. ``notice`` tells the user,
        ``taught`` is told how far the workers' teachers are. ``engine``: what every worker is to have, if anything.

        Raises :class:`UserError` where the cluster cannot be joined, or can never have that many workers.
        """
        self._notice = notice
        self._taught = taught
        _connect(address, workers)
        room = _room(engine.gpus if engine is not None else 0)
        # Where there are no GPUs at all, an engine runs on the CPU.
        self.gpus = engine.gpus if engine is not None and room.gpus else 0
        self.workers = workers or _default_workers(engine, room, self.gpus)
        problem = _too_small(self.workers, room, self.gpus)
        if problem is not None:
            ray.shutdown()
            raise UserError(problem)
        nodes = sum(node["Alive"] for node in ray.nodes())
        where = (
            "Ray on this machine" if address == "local" else f"Ray cluster of {nodes} node{'s' if nodes > 1 else ''}"
        )
        self.description = f"{self.workers} worker{'s' if self.workers > 1 else ''}, {where}"
        #: Attempts that were lost with their workers.
        self.lost = 0

    def run(self, setup: Setup, tasks: Iterable[Task]) -> Iterator[Done]:
        """Convert and commit every task."""
        # Made as they are asked for.
        attempts: Iterator[_Attempt] = (_Attempt(ray.put(task), _name(task), 1) for task in tasks)
        first = next(attempts, None)
        if first is None:
            return
        attempts = chain([first], attempts)
        if setup.teacher is None:
            yield from self._run_all(setup, attempts)
            return
        with marked(setup.teacher.answers, "--answers") as mark:
            marked_setup = setup._replace(teacher=setup.teacher._replace(mark=mark))
            yield from self._run_all(marked_setup, attempts)

    def _run_all(self, setup: Setup, attempts: Iterator[_Attempt]) -> Iterator[Done]:
        shared = ray.put(setup)
        first: list[_Attempt] = []
        slots: list[_Slot] = []
        try:
            for attempt in islice(attempts, self.workers):  # no more workers than there are tasks
                first.append(attempt)
                slots.append(_Slot(shared, self.gpus, setup.teacher is not None))
            yield from self._run(slots, first[::-1], attempts, LOOK_EVERY if setup.teacher is not None else _PATIENCE)
        finally:
            if setup.teacher is not None:  # an engine has processes of its own, which are to end too
                closing = [slot.actor.close.remote() for slot in slots]
                ray.wait(closing, num_returns=len(closing), timeout=_PATIENCE)
            for slot in slots:
                ray.kill(slot.actor)

    def _run(
        self, slots: list[_Slot], again: list[_Attempt], attempts: Iterator[_Attempt], look_every: float
    ) -> Iterator[Done]:
        """``again``: the tasks to be given first, the last of them before the others."""
        starting = 0  # workers in a row that died before they could be given anything
        looked = checked = time.monotonic()
        while True:
            # Tasks wait here, not in the queue of an actor that has no CPU yet and may never get one.
            while slot := min((slot for slot in slots if slot.room), key=lambda slot: len(slot.tasks), default=None):
                attempt = again.pop() if again else next(attempts, None)
                if attempt is None:
                    break
                slot.give(attempt)
            waiting = {result: slot for slot in slots for result in slot.results}
            if not again and not any(slot.tasks for slot in slots):
                return
            (result,) = ray.wait(list(waiting), num_returns=1, timeout=look_every)[0] or (None,)
            now = time.monotonic()
            if look_every < _PATIENCE and now >= looked + look_every:
                looked = now
                self._look(slots)
            if result is None:
                if now >= checked + _PATIENCE:
                    checked = now
                    self._check_alive(slots)
                continue
            checked = now
            slot = waiting[result]
            try:
                done = ray.get(result)
            except RayTaskError as error:  # the worker lives, what it did went wrong
                if not isinstance(error.cause, UserError):
                    raise
                elsewhere = slot.node not in ("", socket.gethostname())
                raise UserError(f"node '{slot.node}': {error.cause}" if elsewhere else str(error.cause)) from None
            except RayError as error:
                self.lost += 1
                starting = 0 if slot.started else starting + 1
                if starting == ATTEMPTS:
                    raise UserError(
                        f"the workers cannot start: {_reason(error)}. Every node needs this package and the same "
                        f"versions of Python and Ray; a Ray job brings the package along, see jobs/submit.py"
                    ) from None
                again += slot.lose(error)
                self._notice(f"a worker has died ({_reason(error)}); another takes its place")
            else:
                starting = 0
                slot.take(result, done)
                if isinstance(done, Done):
                    yield done

    def _look(self, slots: list[_Slot]) -> None:
        """Tell how far the teachers are. Whoever does not say so at once is busy, or is about to be found dead."""
        asked = [slot.actor.taught.remote() for slot in slots if slot.started]
        for answered in ray.wait(asked, num_returns=len(asked), timeout=LOOK_EVERY)[0] if asked else ():
            with suppress(RayError, GetTimeoutError):
                self._taught(ray.get(answered))

    def _check_alive(self, slots: list[_Slot]) -> None:
        """Say what is waited for, or stop where it can never come."""
        if any(slot.started for slot in slots):
            return
        room = _room(self.gpus)
        problem = _too_small(1, room, self.gpus)
        if problem is not None:
            raise UserError(f"{problem}. Finished shards are kept")
        free = ray.available_resources()
        needed = f"{int(free.get('CPU', 0))} of the cluster's {room.cpus} CPUs"
        if self.gpus:
            needed += f" and {int(free.get('GPU', 0))} of its {room.gpus} GPUs"
        self._notice(f"waiting for a worker: {needed} are free")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        ray.shutdown()  # stops Ray where it was started here


class _Attempt(NamedTuple):
    """A task on its way; the task itself is in Ray's object store, whatever the number of attempts."""

    task: Any
    name: str
    tries: int


class _Slot:
    """A place in the pool. Its actor is replaced when it dies."""

    def __init__(self, setup: Any, gpus: int, side_by_side: bool) -> None:
        """``side_by_side``: the actor does all its tasks at once, and says meanwhile how far it is."""
        self._setup = setup
        self._side_by_side = side_by_side
        threads = _WINDOW_PER_ACTOR + 1 if side_by_side else 1
        self._options: dict[str, Any] = {"num_gpus": gpus, "max_concurrency": threads}
        self._begin()

    def _begin(self) -> None:
        self.actor = _Actor.options(**self._options).remote()
        #: Empty until it has started.
        self.node = ""
        #: In the order in which the actor does them: where it dies, the first was at work and the others were not, unless
        #: it does them side by side.
        self.tasks: deque[_Attempt] = deque()
        #: What the actor will give, in the same order; first of all that it has started.
        self.results: deque[Any] = deque([self.actor.start.remote(self._setup)])

    @property
    def started(self) -> bool:
        """Whether the actor has a CPU, and is ready to work."""
        return self.node != ""

    @property
    def room(self) -> bool:
        """Whether it can be given another task."""
        return self.started and len(self.tasks) < _WINDOW_PER_ACTOR

    def give(self, attempt: _Attempt) -> None:
        """Hand out a task."""
        self.tasks.append(attempt)
        self.results.append(self.actor.run.remote(attempt.task))

    def take(self, result: Any, value: str | Done) -> None:
        """Note what has come: the node's name at the start, then what became of a task."""
        place = self.results.index(result)
        del self.results[place]
        if isinstance(value, Done):
            del self.tasks[place]
        else:
            self.node = value

    def lose(self, error: RayError) -> list[_Attempt]:
        """Replace the actor, which has died. Gives the tasks that are to be done again, the first to be done last."""
        tasks = list(self.tasks)
        if tasks:
            first = tasks[0]
            if first.tries == ATTEMPTS:
                raise UserError(
                    f"{first.name} ended their worker {ATTEMPTS} times ({_reason(error)}). A worker that runs out of "
                    f"memory ends like this: try --set shard.bytes=4000000. Finished shards are kept"
                )
            for place in range(len(tasks) if self._side_by_side else 1):
                tasks[place] = tasks[place]._replace(tries=tasks[place].tries + 1)
        ray.kill(self.actor)  # it may only be out of reach
        self._begin()
        return tasks


class _Worker:
    """A shard worker in a Ray actor."""

    def start(self, setup: Setup) -> str:
        """Make ready, and give the node's name.

        Raises :class:`UserError` where the node does not see what the driver has written.
        """
        if setup.out.get(IDENTITY) is None:
            raise UserError(
                f"--out {setup.out}: the node '{socket.gethostname()}' does not see this directory. "
                f"On a cluster, use a shared file system or a URL such as s3://bucket/grids"
            )
        if setup.teacher is not None:
            check_seen(setup.teacher.answers, setup.teacher.mark, "--answers")
        self._worker = ShardWorker(setup)
        return socket.gethostname()

    def taught(self) -> Taught | None:
        """How far the worker's teacher is."""
        return self._worker.taught()

    def run(self, task: Task) -> Done:
        """Convert and commit one shard."""
        return self._worker.run(task)

    def close(self) -> None:
        """Let the engine go."""
        self._worker.close()


_Actor: Any = ray.remote(num_cpus=1)(_Worker)


def _connect(address: str, workers: int | None) -> None:
    """Start or join a cluster, quietly."""
    # Usage reports and authentication are the cluster's business; a cluster that is started here needs neither.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Whether a worker that asks for no GPU still sees those of its node: 0 says that it does, which newer versions of Ray
    # take for granted and older ones warn about if nothing is said. Such a worker of ours uses none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own: dict[str, Any] = {}
    try:
        if address == "local":
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            own = {"num_cpus": workers, "include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        # Says a paragraph on stdout for every worker that dies, whatever the options are. We say it in a line.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        verb = "Ray cannot be started here" if address == "local" else "cannot join this cluster"
        raise UserError(f"--ray {address}: {verb}: {_reason(error)}. --ray off converts in this process") from None


class Nodes(NamedTuple):
    """So many nodes that are alike; the CPUs and GPUs of each."""

    number: int
    cpus: int
    gpus: int


class Room(NamedTuple):
    """What a cluster has, those nodes included that an autoscaler would add."""

    nodes: tuple[Nodes, ...]

    @property
    def cpus(self) -> int:
        """All CPUs."""
        return sum(nodes.number * nodes.cpus for nodes in self.nodes)

    @property
    def gpus(self) -> int:
        """All GPUs."""
        return sum(nodes.number * nodes.gpus for nodes in self.nodes)

    def engines(self, gpus_each: int) -> int:
        """How many workers with an engine there is room for: each needs a CPU and all its GPUs on one node."""
        return sum(nodes.number * min(nodes.gpus // gpus_each, nodes.cpus) for nodes in self.nodes)


def _room(gpus_each: int = 0) -> Room:
    """The nodes that are alive, or those that the cluster's autoscaler may have at most, whichever has room for more
    workers with ``gpus_each`` GPUs.

    Which of the nodes that are alive are among those cannot be told, so the two are not added.
    """
    alive = [_node(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    rooms = Room(tuple(alive)), Room(tuple(_scaled()))
    return max(rooms, key=lambda room: (room.engines(gpus_each) if gpus_each else 0, room.cpus, room.gpus))


def _node(resources: Mapping[str, float], number: int = 1) -> Nodes:
    return Nodes(number, int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


def _scaled() -> Iterator[Nodes]:
    """The kinds of nodes that the autoscaler may add, each as often as it may."""
    from ray._private.state import state  # what Ray's own libraries ask; there is no public way

    config = state.get_cluster_config()
    for group in config.node_group_configs if config is not None else ():
        # -1: without end
        yield _node(
            {name: each if each >= 0 else _ENDLESS for name, each in group.resources.items()},
            group.max_count if group.max_count >= 0 else _ENDLESS,
        )


def _default_workers(engine: EngineSpec | None, room: Room, gpus_each: int) -> int:
    """As many workers as the cluster has room for. ``gpus_each``: 0 where there are no GPUs for the engine."""
    if engine is None:
        return min(max(room.cpus, 1), _MOST_WORKERS)
    if gpus_each:
        return min(max(room.engines(gpus_each), 1), _MOST_WORKERS)
    return 1 if engine.kind == "vllm" else max(min(room.cpus, _TALKERS), 1)  # on CPUs, one engine takes all of them


def _too_small(workers: int, room: Room, gpus_each: int) -> str | None:
    """What is missing for so many workers; None where nothing is."""
    if workers > room.cpus:
        remedy = f"Use --workers {room.cpus} or add nodes" if room.cpus else "Add nodes that have CPUs"
        return (
            f"--workers {workers}: each worker takes one CPU, and the Ray cluster has {room.cpus}; "
            f"{workers - room.cpus} missing. {remedy}"
        )
    if not gpus_each or workers <= (engines := room.engines(gpus_each)):
        return None
    largest = max([nodes.gpus for nodes in room.nodes], default=0)
    if engines:
        has, remedy = f"room for {engines}", f"Use --workers {engines}, or add"
    elif largest < gpus_each:
        has, remedy = f"no node with more than {largest}", "Use smaller tensor_parallel_size, or add"
    else:
        has, remedy = "no node with so many and a CPU for the worker", "Add"
    return (
        f"--workers {workers}: each engine takes {gpus_each} GPU{'s' if gpus_each > 1 else ''} of one node "
        f"(tensor_parallel_size × pipeline_parallel_size), and the Ray cluster has {has} (all in all {room.gpus} GPUs). "
        f"{remedy} nodes with {'GPUs' if gpus_each == 1 else f'{gpus_each} GPUs or more'}"
    )


def _name(task: Task) -> str:
    cut = task.cut
    return f"{cut.file}: records {cut.first} to {cut.first + cut.count - 1}"


def _reason(error: Exception) -> str:
    """What Ray says, on one line: its messages begin with what happened, and a traceback ends with it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if "creation task" in lines[0] else 0].rstrip(".")
