"""Plans of a few records, for looking at: by a model, or as prompts that nobody answers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from typing import Self

from rich.text import Text

from pipeline.engines.build import build_engine
from pipeline.engines.identify import identify
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
from pipeline.teach.answers import AnswerStore
from pipeline.teach.asking import Asker
from pipeline.teach.recorder import PromptRecorder
from pipeline.teach.shard import ShardTeacher, parts_to_plan, probe_for, teaching_planner


class PreviewTeacher:
    """Asks for the plans of a preview and remembers what was said. A context manager: it holds an engine."""

    def __init__(self, recipe: Recipe, spec: EngineSpec, answers: str | None) -> None:
        """``answers``: a store to take answers from and to put them in; None: they are forgotten.

        Raises :class:`pipeline.errors.UserError` where recipe, engine and layout do not go together.
        """
        assert recipe.prompt is not None and recipe.teacher is not None
        prompt = recipe.prompt
        self._recipe = recipe
        self._runner = asyncio.Runner()
        self._forgotten = tempfile.TemporaryDirectory()
        self._store = AnswerStore(answers or self._forgotten.name)
        self._asker = Asker(
            build_engine(spec),
            self._store,
            recipe.teacher,
            model=self._runner.run(identify(spec)),
            concurrency=spec.concurrency,
            probe=probe_for(recipe),
        )
        self._watches: dict[str, Watch] = {}
        self._plans: dict[str, Plan | Rejected] = {}
        self._parts: dict[str, list[Part]] = {}

        def ask_for(record_id: str) -> Watch:
            watch = self._watches[record_id] = Watch(self._asker.conversation(prompt))
            return watch

        self._teacher = ShardTeacher(recipe, ask_for, spec.concurrency)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._runner.run(self._asker.close())
        self._runner.run(self._store.close())
        self._runner.close()
        self._forgotten.cleanup()

    def plan(self, cut: Cut, found: Sequence[Record]) -> Plans:
        """The plans of some records."""
        plans = self._runner.run(self._teacher.plan(cut.file, cut.format, found))
        self._plans.update(plans.by_id)
        for record in found:
            parts = parts_to_plan(self._recipe, cut.format, record)
            if parts is not None:
                self._parts[f"{cut.file}:{record.number}"] = parts
        return plans

    def lines(self, record_id: str, width: int) -> Iterator[Text]:
        """What was asked and said about one record, and its plan."""
        watch, plan = self._watches.get(record_id), self._plans.get(record_id)
        if watch is None:
            return
        yield Text(visible(record_id), style="bold")
        yield from call_lines(watch.calls, width)
        if isinstance(plan, Plan):
            yield from plan_lines(plan, self._parts[record_id], width)


def prompts(files: Sequence[InputFile], recipe: Recipe, limit: int) -> Iterator[tuple[str, list[Call]]]:
    """For the first ``limit`` records that would be converted: id and calls, each answered with a valid example."""
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
                asyncio.run(planner(parts, recorder))  # type: ignore[arg-type]
                calls = [Call(c.messages, c.constraint, c.max_tokens, (c.example,)) for c in recorder.calls]
                yield f"{cut.file}:{record.number}", calls
                left -= 1
                if not left:
                    return


def prompt_lines(found: Iterator[tuple[str, list[Call]]], width: int) -> Iterator[Text]:
    """The lines that show prompts. Raises :class:`UserError` where there are none."""
    nothing = True
    for record_id, calls in found:
        nothing = False
        yield Text(visible(record_id), style="bold")
        yield from call_lines(calls, width, answered=False)
        if not calls:
            yield Text("nothing is asked about this conversation", style="yellow")
    if nothing:
        raise UserError("no record of the input would be converted with this recipe; 'pipeline preview' says why")
