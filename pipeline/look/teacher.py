"""Plans of a few records, for looking at: by a model, or as prompts that nobody answers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple, Self

from rich.text import Text

from pipeline.engines.identify import identify, pin
from pipeline.engines.spec import EngineSpec
from pipeline.errors import Rejected, UserError
from pipeline.look.asking import Call, Watch, call_lines, plan_lines
from pipeline.look.cells import visible
from pipeline.plan.plan import Plan, Plans
from pipeline.read.containers import Record
from pipeline.read.conversation import Part
from pipeline.read.cut import Cut, cuts, records
from pipeline.read.inputs import InputFile
from pipeline.read.scan import peek
from pipeline.recipe import Recipe
from pipeline.teach.build import build_asker
from pipeline.teach.recorder import PromptRecorder
from pipeline.teach.shard import ShardTeacher, parts_to_plan, teaching_planner

#: How often a preview that waits looks whether the engine answers, and how long it says nothing more of it.
_LOOK_SECONDS, _AGAIN_SECONDS = 1.0, 60.0


class PreviewTeacher:
    """Asks for the plans of a preview and remembers what was said. A context manager: it holds an engine."""

    def __init__(
        self,
        recipe: Recipe,
        spec: EngineSpec,
        answers: str | None,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``answers``: a store to take answers from and to put them in; None: they are forgotten. ``notice`` tells the
        user something.

        Raises :class:`pipeline.errors.UserError` where recipe, engine and layout do not go together.
        """
        assert recipe.prompt is not None and recipe.teacher is not None
        prompt = recipe.prompt
        self._recipe = recipe
        self._watches: dict[str, Watch] = {}
        self._plans: dict[str, Plan | Rejected] = {}
        self._parts: dict[str, list[Part]] = {}

        def ask_for(record_id: str) -> Watch:
            watch = self._watches[record_id] = Watch(asker.conversation(prompt))
            return watch

        self._teacher = ShardTeacher(recipe, ask_for, spec.concurrency)
        spec = pin(spec, notice)
        with ExitStack() as held:  # let go of in reverse, also where one of these steps fails
            folder = answers or held.enter_context(tempfile.TemporaryDirectory())
            runner = self._runner = held.enter_context(asyncio.Runner())
            model = runner.run(identify(spec))
            asker, store = build_asker(spec, recipe, model, folder)
            held.callback(lambda: runner.run(store.close()))
            held.callback(lambda: runner.run(asker.close()))
            self._asker, self._notice = asker, notice
            self._held = held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def plan(self, cut: Cut, found: Sequence[Record]) -> Plans:
        """The plans of some records."""
        plans = self._runner.run(self._plan(cut, found))
        self._plans.update(plans.by_id)
        for record in found:
            parts = parts_to_plan(self._recipe, cut.format, record)
            if parts is not None:
                self._parts[f"{cut.file}:{record.number}"] = parts
        return plans

    async def _plan(self, cut: Cut, found: Sequence[Record]) -> Plans:
        """Plans; while they are waited for, the user is told when the engine does not answer."""
        telling = asyncio.create_task(self._tell())
        try:
            return await self._teacher.plan(cut.file, cut.format, found)
        finally:
            telling.cancel()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._asker.trouble:
                self._notice(f"the engine does not answer: {self._asker.trouble}; it is tried again")
                await asyncio.sleep(_AGAIN_SECONDS)

    def lines(self, record_id: str, width: int) -> Iterator[Text]:
        """What was asked and said about one record, and its plan."""
        watch, plan = self._watches.get(record_id), self._plans.get(record_id)
        if watch is None:
            return
        yield Text(visible(record_id), style="bold")
        yield from call_lines(watch.calls, width)
        if isinstance(plan, Plan):
            yield from plan_lines(plan, self._parts[record_id], width)


class Prompted(NamedTuple):
    """What would be asked about one record."""

    id: str
    #: Each answered with a valid example.
    calls: list[Call]
    #: Why there are no more calls, where the planner gives the record up, whatever is answered.
    rejected: Rejected | None


def prompts(files: Sequence[InputFile], recipe: Recipe, limit: int) -> Iterator[Prompted]:
    """What would be asked about the first ``limit`` records that a plan would be made for."""
    if recipe.prompt is None:
        raise UserError(f"recipe {recipe.name}: the planner {recipe.planner} asks no model, so there is no prompt")
    planner = teaching_planner(recipe)
    left = limit
    for file in files:
        for cut in cuts(file, peek(file, recipe.read), recipe.read):
            for record in records(cut, recipe.read):
                parts = parts_to_plan(recipe, cut.format, record)
                if parts is None:
                    continue
                recorder = PromptRecorder()
                rejected = None
                try:
                    asyncio.run(planner(parts, recorder))  # type: ignore[arg-type]
                except Rejected as reason:
                    rejected = reason
                calls = [Call(c.messages, c.constraint, c.max_tokens, (c.example,)) for c in recorder.calls]
                yield Prompted(f"{cut.file}:{record.number}", calls, rejected)
                left -= 1
                if not left:
                    return


def prompt_lines(found: Iterator[Prompted], width: int) -> Iterator[Text]:
    """The lines that show prompts. Raises :class:`UserError` where there are none."""
    nothing = True
    for record_id, calls, rejected in found:
        nothing = False
        yield Text(visible(record_id), style="bold")
        yield from call_lines(calls, width, answered=False)
        if rejected is not None:
            yield Text(visible(f"quarantine: {rejected}"), style="yellow")
        elif not calls:
            yield Text("nothing is asked about this conversation", style="yellow")
    if nothing:
        raise UserError("no record of the input would be converted with this recipe; 'pipeline preview' says why")
