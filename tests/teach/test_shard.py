"""The plans of a shard: what a teacher cannot plan is rejected alone, with what it said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import builtin, chat, raw

from pipeline.convert import ShardConverter, ShardFiles
from pipeline.engines.protocol import Answer, Request, RequestRefused
from pipeline.engines.scripted import ScriptedEngine
from pipeline.errors import Reason
from pipeline.grid.ids import token_ids
from pipeline.plan.plan import Dependency, Plan, Plans
from pipeline.read.cut import cut_all, records
from pipeline.read.inputs import resolve_inputs
from pipeline.read.scan import scan
from pipeline.recipe import Recipe, load_recipe
from pipeline.store.plans import plans_or_faults, unpack
from pipeline.teach.answers import AnswerStore
from pipeline.teach.asking import Asker
from pipeline.teach.causal import Shown, Thread
from pipeline.teach.shard import ShardTeacher

GOOD = [raw(chat(f"Question {i}? Really?", f"Answer {i}. Yes!")) for i in range(2)]
BAD = raw(chat("The bad one? Really?", "Whatever. Yes!"))


def needs_nothing(request: Request) -> Answer:
    """An answer to ``align`` that is always valid."""
    assert request.constraint is not None
    return Answer(json.dumps(dict.fromkeys(request.constraint.value["required"], 0)), "stop", 10, 5)


def but_for_the_bad_one(answer: Answer | Exception) -> Callable[[Request], Answer]:
    def respond(request: Request) -> Answer:
        if "The bad one?" not in request.messages[1].content:
            return needs_nothing(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return respond


async def plans_for(
    path: Path, recipe: Recipe, respond: Callable[[Request], Answer], store: Path
) -> tuple[Plans, Asker]:
    """The plans of the one shard of a file."""
    assert recipe.prompt is not None and recipe.teacher is not None
    prompt = recipe.prompt
    answers = AnswerStore(str(store))
    asker = Asker(ScriptedEngine(respond), answers, recipe.teacher)
    await asker.start()
    teacher = ShardTeacher(recipe, lambda _: asker.conversation(prompt), 4)
    files = resolve_inputs([str(path)])
    (cut,) = cut_all(files, [scan(file, recipe.read) for file in files], recipe.read)
    done = []
    plans = await teacher.plan(cut.file, cut.format, list(records(cut, recipe.read)), lambda: done.append(1))
    assert len(done) == cut.count
    await asker.close()
    await answers.close()
    return plans, asker


def converted(path: Path, recipe: Recipe, plans: Plans) -> ShardFiles:
    files = resolve_inputs([str(path)])
    (cut,) = cut_all(files, [scan(file, recipe.read) for file in files], recipe.read)
    tokenizer = builtin()
    converter = ShardConverter(recipe, tokenizer, token_ids(recipe.layout, tokenizer))
    return converter.convert(cut.file, cut.format, records(cut, recipe.read), plans)


CASES: dict[Reason, tuple[Answer | Exception, int]] = {
    Reason.TEACHER_REFUSED: (RequestRefused("the prompt has 9 tokens, the context 8"), 1),
    Reason.TEACHER_TRUNCATED: (Answer('{"1"', "length", 10, 5), 4),
    Reason.TEACHER_INVALID: (Answer('{"1": "soon"}', "stop", 10, 5), 4),
}


@pytest.mark.parametrize("reason", CASES)
def test_what_a_teacher_cannot_plan_is_rejected_alone(reason: Reason, tmp_path: Path) -> None:
    answer, said = CASES[reason]
    path = tmp_path / "chats.jsonl"
    path.write_bytes(b"\n".join([GOOD[0], BAD, GOOD[1]]))
    recipe = load_recipe("align")
    plans, _ = asyncio.run(plans_for(path, recipe, but_for_the_bad_one(answer), tmp_path / "answers"))

    made = converted(path, recipe, plans)

    assert made.counts.quarantine_reasons == {str(reason): 1}
    (line,) = [json.loads(line) for line in made.quarantine.splitlines()]
    assert (line["id"], line["reason"]) == ("chats.jsonl:1", str(reason))
    assert line["answers"] == [answer.text if isinstance(answer, Answer) else str(answer)] * said
    kept = [plan for plan in plans_or_faults(unpack(made.plans)) if isinstance(plan, Plan)]
    assert [plan.id for plan in kept] == ["chats.jsonl:0", "chats.jsonl:2"]
    assert all(plan.teacher is not None and len(plan.teacher.answers) == 1 for plan in kept)


def test_a_planner_that_reads_ahead_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``blind``, broken: its prompts show all of the input at once."""
    path = tmp_path / "chats.jsonl"
    path.write_bytes(b"\n".join([GOOD[0], raw(chat("One sentence", "Fine."))]))
    recipe = load_recipe("blind")

    def everything(self: Thread, after: tuple[Dependency, ...]) -> list[Shown]:
        return [self.show(number) for number in range(len(self._edges.segments))]

    monkeypatch.setattr(Thread, "news", everything)
    asked: list[Request] = []

    def respond(request: Request) -> Answer:
        asked.append(request)
        return Answer('{"thoughts":[]}', "stop", 10, 5)

    plans, _ = asyncio.run(plans_for(path, recipe, respond, tmp_path / "answers"))
    made = converted(path, recipe, plans)
    assert made.counts.quarantine_reasons == {"causality": 1}
    assert made.counts.converted == len(asked) == 1


def test_records_that_will_not_be_converted_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(b"\n".join([GOOD[0], b"{", raw({"messages": []}), raw(chat("Hi", "Ho"))]))
    recipe = load_recipe("align", ["filter.min_characters=10"])
    asked: list[str] = []

    def respond(request: Request) -> Answer:
        asked.append(request.messages[1].content)
        return needs_nothing(request)

    plans, asker = asyncio.run(plans_for(path, recipe, respond, tmp_path / "answers"))
    assert list(plans.by_id) == ["chats.jsonl:0"]
    assert len(asked) == asker.counters().asked == 1
    made = converted(path, recipe, plans)
    assert (made.counts.converted, made.counts.filtered, made.counts.quarantined) == (1, 1, 2)
