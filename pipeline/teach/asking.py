"""One request, one answer: from the store, or from the engine and then into the store.

All conversations of a process share one :class:`Asker`. It keeps the engine full but not fuller than it was told, asks
what is asked twice once, and starts an engine that was lost again. What depends on chance or on time happens here and
shows in counters only: an answer that is given out is always the one that the store holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import NamedTuple

import msgspec

from pipeline.engines.protocol import Answer, Engine, EngineLost, Message, Model, Request, RequestRefused, Sampling
from pipeline.errors import UserError
from pipeline.teach.answer_line import REFUSED, Question, question
from pipeline.teach.answers import AnswerStore
from pipeline.teach.counters import Counters, Meter
from pipeline.teach.dialogue import Dialogue
from pipeline.teach.prompts import Prompt
from pipeline.teach.settings import TeacherSettings
from pipeline.teach.turns import turn

#: An answer that ended like this says nothing about the model: the engine gave it up. It is not kept.
_GIVEN_UP = frozenset({"abort", "error"})

#: Requests in a row, with no answer in between, that may be blamed for the loss of an engine that is well otherwise.
_MOST_BLAMED = 5
_TO_BLAME = "the engine is lost whenever it is asked this, also with nothing else in flight"

#: The file in the store by which processes take turns.
_SUSPECT = "suspect"

#: What an engine is asked that was lost and is started again: whether it is it, or what it was asked.
_A_WORD = Request((Message("user", "Say a word."),), sampling=Sampling(max_tokens=1))

#: The longest pause between two starts of a lost engine, in seconds.
_LONGEST_PAUSE = 30.0


#: Looks at an engine that has just started; the kinds of constraint that bind.
Probe = Callable[[Engine, Model], Awaitable[frozenset[str]]]


class Given(NamedTuple):
    """An answer, its key in the store, and whether it was paid for now."""

    key: str
    answer: Answer
    paid: bool


class _Flight:
    """A request under way, and how many wait for it."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[Given]) -> None:
        self.task = task
        self.waiting = 0


class Asker:
    """Has requests answered, many at a time. One per process; its coroutines belong to one event loop."""

    def __init__(
        self,
        engine: Engine,
        store: AnswerStore,
        settings: TeacherSettings,
        *,
        model: Model | None = None,
        concurrency: int = 256,
        timeout: float | None = None,
        losses: int = 8,
        doubts: int = 3,
        pause: float = 0.5,
        probe: Probe | None = None,
        warm_up: bool = False,
        shared: bool = False,
        rounds: int = 1,
    ) -> None:
        """``model``: what will answer, where that is known before the engine is started; then the engine is started
        when the store lacks an answer, and a replay needs none. ``concurrency``: the most requests in flight.
        ``timeout``: seconds after which an engine that has not answered a request counts as lost. ``losses``: how often
        it may be lost without saying anything in between; ``pause``: seconds before the first new start, doubled each
        time. ``doubts``: after so many losses a request is asked with nothing else in flight, and after so many more it
        is to blame, if the engine is well without it.
        ``probe`` looks at the engine when it has started for the first time, and says which constraints bind; others are
        not sent: planners check every answer anyway. ``warm_up``: a started engine answers one request before it is given
        more, so that what all prompts begin with is in its cache when they come. ``shared``: the engine may serve other
        processes with the same store; then only one of them at a time asks what the engine may have been lost over.
        ``rounds``: how many times
        ``settings.attempts`` a question may be asked before its conversation is rejected; more than one where a run shall
        try again what an earlier one gave up.
        """
        self.meter = Meter()
        self.settings = settings
        self.rounds = rounds
        self._engine = engine
        self._store = store
        self._model = model
        self._concurrency = concurrency
        self._timeout = timeout
        self._losses = losses
        self._doubts = doubts
        self._pause = pause
        self._probe = probe
        #: The kinds of constraint that bind; None: all.
        self._binding: frozenset[str] | None = None
        self._slots = asyncio.Semaphore(concurrency)
        self._alone = asyncio.Lock()
        self._warm_up = warm_up
        self._shared = shared
        #: Whether the engine may have more than one request: not before it has answered one.
        self._warm = not warm_up
        self._warming = asyncio.Lock()
        self._flights: dict[str, _Flight] = {}
        self._up = False
        self._turn = 0  # starts so far
        self._starting: asyncio.Task[None] | None = None
        self._lost = 0  # times, without a word in between
        self._blamed = 0  # requests, without an answer in between
        self._why = ""

    async def start(self) -> Model:
        """Start the engine, unless that can wait, and say which model answers. Raises :class:`UserError`."""
        if self._model is None:
            await self._ready()
        return self.model

    @property
    def model(self) -> Model:
        """The model that answers: known once :meth:`start` has returned."""
        if self._model is None:
            raise RuntimeError("nobody has started this Asker yet")
        return self._model

    def conversation(self, prompt: Prompt) -> Dialogue:
        """What asks on behalf of one conversation; ``prompt`` says how an invalid answer is complained about."""
        return Dialogue(self, prompt)

    async def close(self) -> None:
        """Give up what is under way, let go of the engine. The store stays open."""
        tasks: list[asyncio.Task[Given] | asyncio.Task[None]] = [flight.task for flight in self._flights.values()]
        if self._starting is not None:
            tasks.append(self._starting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._engine.close()
        self._up = False

    @property
    def trouble(self) -> str:
        """Why the engine does not answer at present; empty where it does."""
        return self._engine.trouble if self._up else self._why if self._lost else ""

    def counters(self) -> Counters:
        """What asking has cost so far."""
        return self.meter.snapshot()

    async def answer(self, request: Request) -> Given:
        """The answer to a request, durable. Where there can be none, that is the answer: it ends with :data:`REFUSED`.

        Raises :class:`UserError` where the engine is lost for good or answers cannot be kept.
        """
        asked = question(await self.start(), request)
        kept = self._store.known(asked)
        if kept is not None:
            self.meter.now.stored += 1
            return Given(asked.key, kept, False)
        flight = self._flights.get(asked.key)
        first = flight is None
        if flight is None:
            flight = self._flights[asked.key] = _Flight(asyncio.create_task(self._fetch(asked, request)))
        flight.waiting += 1
        try:
            given = await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if flight.waiting == 0:  # done, or nobody wants it any more
                flight.task.cancel()
                if self._flights.get(asked.key) is flight:
                    del self._flights[asked.key]
        if not (first and given.paid):
            self.meter.now.stored += 1
            return given._replace(paid=False)
        return given

    async def kept(self, request: Request) -> Given | None:
        """The answer to a request if it costs nothing; None where it would have to be asked for."""
        asked = question(await self.start(), request)
        answer = await self._store.find(asked)
        if answer is None:
            return None
        self.meter.now.stored += 1
        return Given(asked.key, answer, False)

    async def _fetch(self, asked: Question, request: Request) -> Given:
        kept = await self._store.find(asked)
        if kept is not None:
            return Given(asked.key, kept, False)
        try:
            answer = _storable(await self._engine_answer(request))
        except RequestRefused as error:
            return Given(asked.key, await self._store.keep(asked, _storable(Answer(str(error), REFUSED))), True)
        now = self.meter.now
        now.asked += 1
        now.prompt_tokens += answer.prompt_tokens
        now.cached_tokens += answer.cached_tokens
        now.output_tokens += answer.output_tokens
        return Given(asked.key, await self._store.keep(asked, answer), True)

    # The engine, which may be lost at any time.

    async def _engine_answer(self, request: Request) -> Answer:
        """Ask until there is an answer. A request that the engine is lost over again and again is asked with nothing else
        in flight, and where it is lost over it then too, it is the request that is to blame.
        """
        for _ in range(self._doubts):
            async with self._warmed(), self._slots:
                answer = await self._attempt(request)
            if answer is not None:
                return answer
        async with self._suspects(), self._nothing_else():
            for _ in range(self._doubts):
                answer = await self._attempt(request)
                if answer is not None:
                    return answer
            await self._ready()  # it is started again and speaks, or the run ends here
        self._blamed += 1
        if self._blamed > _MOST_BLAMED:
            raise UserError(
                f"--engine: the engine answers a short question, but was lost over each of the last {self._blamed} "
                f"requests, the last time because: {self._why}. Answers so far are kept: see to it and run the same command "
                f"again"
            )
        raise RequestRefused(_TO_BLAME)  # not why: that may name a host, and refusals are kept

    async def _attempt(self, request: Request) -> Answer | None:
        """Ask once; None where the engine is lost."""
        turn = await self._ready()
        sent = self._as_can_be_asked(request)
        self.meter.begin()
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._engine.ask(sent)
            if answer.finish_reason not in _GIVEN_UP:
                self._is_well()
                return answer if sent is request else msgspec.structs.replace(answer, unconstrained=True)
            why = f"it gave a request up ({answer.finish_reason})"
        except EngineLost as error:
            why = str(error)
        except RequestRefused:
            self._is_well()
            raise
        except TimeoutError:
            why = f"no answer within {self._timeout:g} s" if self._timeout else "no answer in time"
        finally:
            self.meter.end()
        self._has_lost(turn, why)
        return None

    def _is_well(self) -> None:
        """It has dealt with a request."""
        self._lost = self._blamed = 0
        self._warm = True

    @asynccontextmanager
    async def _warmed(self) -> AsyncIterator[None]:
        """Wait for the first request, where there is none yet that has been answered."""
        if not self._warm:
            async with self._warming:
                if not self._warm:
                    yield
                    return
        yield

    def _suspects(self) -> AbstractAsyncContextManager[None]:
        """The turn of one suspect: those of other processes would lose the engine for it, and be blamed."""
        return turn(self._store.folder / _SUSPECT) if self._shared else nullcontext()

    @asynccontextmanager
    async def _nothing_else(self) -> AsyncIterator[None]:
        """All places in flight, so that it is known which request an engine is lost over."""
        async with self._alone:
            taken = 0
            try:
                while taken < self._concurrency:
                    await self._slots.acquire()
                    taken += 1
                yield
            finally:
                for _ in range(taken):
                    self._slots.release()

    def _has_lost(self, turn: int, why: str) -> None:
        """Somebody has found out that the engine is gone; of all who do, the first one counts."""
        if self._up and turn == self._turn:
            self._up = False
            self._warm = not self._warm_up
            self._lost += 1
            self._why = why
            self.meter.now.restarts += 1

    async def _ready(self) -> int:
        """Wait until the engine is up, starting it where nobody does yet; the number of this start."""
        while not self._up:
            if self._starting is None:
                self._starting = asyncio.create_task(self._start())
                self._starting.add_done_callback(_has_been_heard)
            await asyncio.shield(self._starting)
        return self._turn

    async def _start(self) -> None:
        try:
            while True:
                if self._lost > self._losses:
                    raise UserError(
                        f"--engine: the engine was lost {self._lost} times without an answer in between, the last time "
                        f"because: {self._why}. Answers so far are kept: see to it and run the same command again"
                    )
                if self._lost:
                    await asyncio.sleep(min(self._pause * 2 ** (self._lost - 1), _LONGEST_PAUSE))
                try:
                    model = await self._engine.start()
                    self._check(model)
                    if self._probe is not None and self._binding is None:
                        self._binding = await self._probe(self._engine, model)
                    elif self._lost:
                        await self._hear()
                except EngineLost as error:
                    self._lost += 1
                    self._why = str(error)
                    continue
                self._lost = 0
                self._turn += 1
                self._up = True
                return
        finally:
            self._starting = None

    async def _hear(self) -> None:
        """Have the engine that was lost say a word. Raises :class:`EngineLost` where it does not."""
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._engine.ask(msgspec.structs.replace(_A_WORD, template=self.settings.template))
        except RequestRefused:
            return
        except TimeoutError:
            raise EngineLost(f"it was started again, but has said nothing within {self._timeout:g} s") from None
        if answer.finish_reason in _GIVEN_UP:
            raise EngineLost(f"it was started again, but gave the first request up ({answer.finish_reason})")

    def _as_can_be_asked(self, request: Request) -> Request:
        """The request without a constraint that this engine takes and ignores, or refuses."""
        constraint = request.constraint
        if constraint is None or self._binding is None or constraint.kind in self._binding:
            return request
        return msgspec.structs.replace(request, constraint=None)

    def _check(self, model: Model) -> None:
        expected = self._model
        if expected is not None and (model.name, model.revision) != (expected.name, expected.revision):
            raise UserError(
                f"--engine: {_named(model)} answers, but this run is made with {_named(expected)}: its answers would be mixed"
            )
        self._model = model


def _has_been_heard(task: asyncio.Task[None]) -> None:
    """Whoever waited for a task may have been cancelled; what it raised is not for the log."""
    if not task.cancelled():
        task.exception()


def _named(model: Model) -> str:
    return model.name if model.revision is None else f"{model.name} (revision {model.revision})"


def _storable(answer: Answer) -> Answer:
    """The answer with every lone surrogate replaced: a server can send some, and no file in UTF-8 can hold them."""
    try:
        answer.text.encode()
    except UnicodeEncodeError:
        text = answer.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return msgspec.structs.replace(answer, text=text)
    return answer
