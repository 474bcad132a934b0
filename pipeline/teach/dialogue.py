"""The questions of one conversation's planner: each is asked until its answer is valid, or too often."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

import msgspec

from pipeline.engines.protocol import Constraint, Message, Request
from pipeline.errors import Reason, Rejected
from pipeline.plan.plan import GivenAnswer, Provenance
from pipeline.teach.answer_line import REFUSED
from pipeline.teach.data import harmless
from pipeline.teach.prompts import RETRY, Prompt

if TYPE_CHECKING:
    from pipeline.teach.asking import Asker, Given

Value = TypeVar("Value")

#: How engines say that an answer has reached ``max_tokens``.
_TRUNCATED = "length"

#: Characters of a truncated answer that its model is shown: enough to know it again, too few to repeat it.
_SHOWN = 80


class Dialogue:
    """Asks on behalf of one conversation (:class:`pipeline.teach.protocol.Ask`), and knows what its plan came from."""

    def __init__(self, asker: Asker, prompt: Prompt) -> None:
        self._asker = asker
        self._prompt = prompt
        self._calls = _Calls(None, (), None)
        self._used: list[tuple[tuple[int, ...], GivenAnswer]] = []

    async def __call__(
        self,
        messages: Sequence[Message],
        constraint: Constraint | None,
        parse: Callable[[str], Value],
        *,
        max_tokens: int,
        example: str,
    ) -> tuple[Value, str]:
        """See :class:`pipeline.teach.protocol.Ask`.

        An invalid answer is followed, in the next attempt, by what was wrong with it; of a truncated one only the
        beginning is shown again. A conversation whose every answer is truncated is ``teacher_truncated``, and one with
        any other answers that are all invalid ``teacher_invalid``. A request that is refused ends its round of attempts:
        nothing but another draw would be asked. Its conversation is ``teacher_refused``, unless a later round, in a
        retry, gets an answer.

        Beyond the attempts that are allowed, answers that are kept already are used: a retry has paid for them, and a
        run that replays its answers shall give what it gave.
        """
        place = self._calls.place()
        now = self._asker.meter.now
        settings = self._asker.settings
        said: list[str] = []
        truncated = 0
        wrong = ""
        refused: str | None = None
        note: tuple[Message, ...] = ()
        following = 0
        while True:
            attempt, following = following, following + 1
            sampling = settings.sampling(attempt, max_tokens)
            request = Request((*messages, *note), (), sampling, constraint, settings.template)
            if attempt < settings.attempts * self._asker.rounds:
                given = await self._given(request, len(messages))
            else:
                kept = await self._kept(request, len(messages))
                if kept is None:
                    break
                given = kept
            answer = given.answer
            said.append(answer.text)
            note = ()
            if answer.finish_reason == REFUSED:
                refused = answer.text
                following = (attempt // settings.attempts + 1) * settings.attempts
                continue
            now.retried += given.paid and attempt > 0
            if answer.finish_reason == "stop":
                try:
                    value = parse(answer.text)
                except ValueError as error:
                    wrong = str(error)
                    note = self._note(answer.text, wrong)
                    continue
                now.accepted += 1
                now.accepted_tokens += answer.output_tokens if given.paid else 0
                self._used.append(
                    (place, GivenAnswer(given.key, sampling.temperature, sampling.seed, answer.finish_reason))
                )
                return value, answer.text
            wrong = f"it ended with '{answer.finish_reason}', not with 'stop'"
            if answer.finish_reason == _TRUNCATED:
                truncated += 1
                note = self._note(f"{answer.text[:_SHOWN]}…", f"it was cut off at {max_tokens} tokens; be brief")
        now.rejected += 1
        if refused is not None:
            raise Rejected(Reason.TEACHER_REFUSED, f"{refused} (kept; `pipeline retry` asks again)", tuple(said))
        if truncated == len(said):
            message = f"all {truncated} answers were cut off at {max_tokens} tokens"
            raise Rejected(Reason.TEACHER_TRUNCATED, message, tuple(said))
        message = f"none of {len(said)} answers was valid; the last one: {wrong}"
        raise Rejected(Reason.TEACHER_INVALID, message, tuple(said))

    def _note(self, answer: str, wrong: str) -> tuple[Message, Message]:
        """What follows a question that is asked again."""
        return Message("assistant", harmless(answer)), Message("user", self._prompt.render(RETRY, problem=wrong))

    async def _given(self, request: Request, messages: int) -> Given:
        """The answer to a request; where a note has made it too long for the model, to the request without."""
        given = await self._asker.answer(request)
        if given.answer.finish_reason != REFUSED or len(request.messages) == messages:
            return given
        return await self._asker.answer(_without_note(request, messages))

    async def _kept(self, request: Request, messages: int) -> Given | None:
        """The same, if it costs nothing."""
        given = await self._asker.kept(request)
        if given is not None and (given.answer.finish_reason != REFUSED or len(request.messages) == messages):
            return given
        return await self._asker.kept(_without_note(request, messages))

    def provenance(self, planner: str) -> Provenance:
        """Where the plan comes from: the answers that were used, in the order of the calls."""
        model, settings = self._asker.model, self._asker.settings
        return Provenance(
            planner=planner,
            prompt=self._prompt.sha256,
            model=model.name,
            revision=model.revision,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            answers=[used for _, used in sorted(self._used, key=lambda each: each[0])],
        )


def _without_note(request: Request, messages: int) -> Request:
    """A request with its first ``messages`` messages only."""
    return msgspec.structs.replace(request, messages=request.messages[:messages])


class _Calls:
    """Numbers the calls of one task like sections of a text: 0, 1, and 2.0, 2.1 in a task that was started between.

    A planner may ask several things at once. In what order the answers come is chance; these numbers are not, as long
    as each task is started in the same order and does the same.
    """

    def __init__(self, task: asyncio.Task[object] | None, path: tuple[int, ...], root: _Calls | None) -> None:
        self._task = None if task is None else weakref.ref(task)
        self._path = path
        self._root = root or self
        self._next = 0

    def place(self) -> tuple[int, ...]:
        """The number of a call that the running task makes now. Asked of the root."""
        task = asyncio.current_task()
        assert task is not None
        calls = _CALLS.get()
        if calls is None or calls._root is not self:
            calls = self
        if calls._task is None or calls._task() is not task:
            calls = _Calls(task, calls._number(), self)
            _CALLS.set(calls)
        return calls._number()

    def _number(self) -> tuple[int, ...]:
        self._next += 1
        return (*self._path, self._next - 1)


#: The calls of the task that started this one, which its context was copied from.
_CALLS: ContextVar[_Calls | None] = ContextVar("_CALLS", default=None)
