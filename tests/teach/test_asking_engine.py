"""Requests and the engine: asked once, never too many at a time, and again when the engine is lost."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from stub_server import Body, Fault, StubServer
from talking import PROMPT, ask, question_of, talk

from pipeline.engines.http import HttpEngine
from pipeline.engines.protocol import Answer, Constraint, Engine, EngineLost, Message, Model, Request, RequestRefused
from pipeline.engines.scripted import ScriptedEngine
from pipeline.engines.spec import parse_spec
from pipeline.errors import Reason, Rejected, UserError
from pipeline.teach.answer_line import REFUSED
from pipeline.teach.answers import AnswerStore
from pipeline.teach.asking import Asker, Given
from pipeline.teach.patience import patience
from pipeline.teach.settings import TeacherSettings


def _request(text: str) -> Request:
    return Request((Message("user", text),))


class Mortal(ScriptedEngine):
    """An engine whose starts are counted, and which may fail to start."""

    def __init__(self, respond: Any, unwilling: int = 0, **model: Any) -> None:
        super().__init__(respond, **{"name": "model", "revision": "1", **model})
        self.starts = 0
        self.starting = 0
        self.unwilling = unwilling

    async def start(self) -> Model:
        self.starts += 1
        self.starting += 1
        assert self.starting == 1, "started by two at once"
        await asyncio.sleep(0.005)
        self.starting -= 1
        if 1 < self.starts <= 1 + self.unwilling:
            raise EngineLost("no port is free")
        return await super().start()


def test_the_same_request_at_the_same_time_is_asked_once(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    async def respond(request: Request) -> str:
        asked[question_of(request)] += 1
        await asyncio.sleep(0.01)
        return "1"

    async def work(asker: Asker) -> list[Any]:
        return await asyncio.gather(*(asker.answer(_request(f"{number % 3}")) for number in range(30)))

    given = talk(tmp_path, respond, work)
    assert asked == {"0": 1, "1": 1, "2": 1}
    assert sum(each.paid for each in given) == 3
    assert len({each.key for each in given}) == 3


def test_no_more_are_in_flight_than_was_said(tmp_path: Path) -> None:
    now, most = 0, 0

    async def respond(request: Request) -> str:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1
        return "1"

    async def work(asker: Asker) -> None:
        await asyncio.gather(*(asker.answer(_request(f"{number}")) for number in range(40)))

    talk(tmp_path, respond, work, concurrency=5)
    assert most == 5


def test_whoever_is_cancelled_takes_nobody_along(tmp_path: Path) -> None:
    started, cancelled = 0, 0

    async def respond(request: Request) -> str:
        nonlocal started, cancelled
        started += 1
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return "1"

    async def work(asker: Asker) -> None:
        first, second, alone = (asyncio.create_task(asker.answer(_request(text))) for text in ("a", "a", "b"))
        await asyncio.sleep(0.02)
        first.cancel()  # the one that had asked
        alone.cancel()
        assert (await second).answer.text == "1"
        assert await asyncio.gather(first, alone, return_exceptions=True)
        assert asker.counters().in_flight == 0
        assert (await asker.answer(_request("b"))).answer.text == "1"

    talk(tmp_path, respond, work)
    assert (started, cancelled) == (3, 1), "nobody wanted b any more, so the engine need not go on"


def test_a_lost_engine_is_started_again_by_one_and_all_ask_again(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    async def respond(request: Request) -> str:
        asked[question_of(request)] += 1
        await asyncio.sleep(0.005)
        if engine.starts == 1:
            raise EngineLost("killed")
        return question_of(request)

    engine = Mortal(respond)

    async def work(asker: Asker) -> list[str]:
        given = await asyncio.gather(*(asker.answer(_request(f"{number}")) for number in range(20)))
        assert asker.counters().restarts == 1
        return [each.answer.text for each in given]

    assert talk(tmp_path, respond, work, engine=engine) == [f"{number}" for number in range(20)]
    assert engine.starts == 2
    assert asked.pop("Say a word.") == 1
    assert set(asked.values()) == {2}


def test_who_finds_out_late_does_not_stop_the_new_engine(tmp_path: Path) -> None:
    class Replaced(Mortal):
        """Every start makes a new engine; who still waits for the old one finds out that it is gone in its own time."""

        async def ask(self, request: Request) -> Answer:
            if self.starts == 1:
                await asyncio.sleep(0.05 if question_of(request) == "late" else 0)
                raise EngineLost("killed")
            await asyncio.sleep(0.1)
            return Answer("1", "stop")

    engine = Replaced(None)

    async def work(asker: Asker) -> None:
        await asyncio.gather(asker.answer(_request("early")), asker.answer(_request("late")))
        assert asker.counters().restarts == 1

    talk(tmp_path, lambda request: "", work, engine=engine)
    assert engine.starts == 2


def test_an_engine_that_is_lost_for_good_ends_the_run(tmp_path: Path) -> None:
    def respond(request: Request) -> str:
        raise EngineLost("CUDA error")

    engine = Mortal(respond)

    async def work(asker: Asker) -> None:
        results = await asyncio.gather(*(asker.answer(_request(f"{n}")) for n in range(10)), return_exceptions=True)
        assert all(isinstance(each, UserError) for each in results)
        raise results[0]  # type: ignore[misc]

    with pytest.raises(UserError, match=r"lost 4 times without an answer in between, .* CUDA error"):
        talk(tmp_path, respond, work, engine=engine, losses=3)
    assert engine.starts == 4


def test_an_engine_that_does_not_start_again_at_once(tmp_path: Path) -> None:
    def respond(request: Request) -> str:
        if engine.starts == 1:
            raise EngineLost("killed")
        return "1"

    async def work(asker: Asker) -> str:
        return (await asker.answer(_request("a"))).answer.text

    engine = Mortal(respond, unwilling=3)
    assert talk(tmp_path, respond, work, engine=engine, losses=4) == "1"
    engine = Mortal(respond, unwilling=3)
    with pytest.raises(UserError, match="no port is free"):
        talk(tmp_path / "other", respond, work, engine=engine, losses=3)


def test_losses_with_answers_in_between_never_end_a_run(tmp_path: Path) -> None:
    chance = random.Random(3)

    async def respond(request: Request) -> str:
        await asyncio.sleep(chance.random() * 0.003)
        if chance.random() < 0.1:
            raise EngineLost("killed")
        return question_of(request)

    engine = Mortal(respond)

    async def work(asker: Asker) -> list[str]:
        given = await asyncio.gather(*(asker.answer(_request(f"{number}")) for number in range(400)))
        return [each.answer.text for each in given]

    texts = talk(tmp_path, respond, work, engine=engine, concurrency=8, losses=5)
    assert texts == [f"{number}" for number in range(400)]
    assert engine.starts > 1 + 5


def test_a_request_that_kills_every_engine_costs_only_its_own_conversation(tmp_path: Path) -> None:
    async def respond(request: Request) -> str:
        await asyncio.sleep(0.003)
        if "poison" in question_of(request):
            raise EngineLost("segmentation fault")
        await asyncio.sleep(random.random() * 0.02)
        return "1"

    engine = Mortal(respond)

    async def work(asker: Asker) -> list[Any]:
        names = [f"{number}" for number in range(30)]
        names[4] = names[20] = "poison"
        names[9] = "another poison"
        asks = (ask(asker.conversation(PROMPT), name) for name in names)
        return await asyncio.gather(*asks, return_exceptions=True)

    results = talk(tmp_path, respond, work, engine=engine)
    rejected = {number: result for number, result in enumerate(results) if result != 1}
    assert sorted(rejected) == [4, 9, 20]
    for each in rejected.values():
        assert isinstance(each, Rejected) and each.reason == Reason.TEACHER_REFUSED
        assert "the engine is lost whenever it is asked this" in each.message
        assert "segmentation fault" not in each.message, "what an engine says may name a host"


def _dies_of(*poisons: str) -> Callable[[Request], Awaitable[str]]:
    async def respond(request: Request) -> str:
        if question_of(request) in poisons:
            await asyncio.sleep(0.01)
            raise EngineLost("segmentation fault")
        return "1"

    return respond


@pytest.mark.parametrize("doubts", [1, 3])
def test_who_is_to_blame_is_found_also_where_all_else_is_answered_already(tmp_path: Path, doubts: int) -> None:
    """The last conversation of a run, and the only one that a rerun still has to ask for."""

    async def others(asker: Asker) -> None:
        await asyncio.gather(*(asker.answer(_request(f"{number}")) for number in range(20)))

    async def all_of_them(asker: Asker) -> list[Given]:
        return [await asker.answer(_request(text)) for text in ("0", "19", "poison", "poison")]

    respond = _dies_of("poison")
    talk(tmp_path, respond, others)
    engine = Mortal(respond)
    options = {"engine": engine, "losses": 2, "doubts": doubts}
    given = talk(tmp_path, respond, all_of_them, **options)
    assert [each.answer.finish_reason for each in given] == ["stop", "stop", REFUSED, REFUSED]
    assert engine.starts == 1 + 2 * doubts


def test_an_engine_that_speaks_but_is_lost_over_every_request_ends_the_run(tmp_path: Path) -> None:
    names = [f"{number}" for number in range(20)]
    respond = _dies_of(*names)

    async def work(asker: Asker) -> None:
        await asyncio.gather(*(asker.answer(_request(name)) for name in names))

    engine = Mortal(respond)
    with pytest.raises(
        UserError, match=r"answers a short question, but was lost over each of the last 6 requests, .* fault"
    ):
        talk(tmp_path, respond, work, engine=engine)
    assert engine.starts < 30


def test_a_server_that_fails_over_one_request_costs_only_its_own_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def answer(body: Body) -> str:
        return "1"

    def faults(body: Body, seen: int) -> Fault | None:
        return Fault("status", status=500) if body["messages"][0]["content"] == "poison" else None

    async def work(asker: Asker) -> list[Any]:
        names = [f"{number}" for number in range(30)] + ["poison"]
        dialogues = (ask(asker.conversation(PROMPT), name) for name in names)
        return await asyncio.gather(*dialogues, return_exceptions=True)

    with StubServer(answer, faults) as server:
        spec = parse_spec(server.url)
        assert spec is not None
        for folder in (tmp_path / "a", tmp_path / "b"):  # in the second, only the poison is left to ask for
            if folder.name == "b":
                (folder / "answers").mkdir(parents=True)
                for path in (tmp_path / "a" / "answers").glob("*.jsonl"):
                    lines = path.read_bytes().splitlines(keepends=True)
                    kept = b"".join(line for line in lines if b"poison" not in line)
                    (folder / "answers" / path.name).write_bytes(kept)
            engine = HttpEngine(spec, tries=2, first_wait=0.01)
            *good, bad = talk(folder, None, work, engine=engine, losses=2, doubts=1)  # type: ignore[arg-type]
            assert good == 30 * [1]
            assert isinstance(bad, Rejected) and bad.reason == Reason.TEACHER_REFUSED
            assert server.url not in str(bad)


def test_an_engine_that_hangs_counts_as_lost(tmp_path: Path) -> None:
    async def respond(request: Request) -> str:
        if engine.starts == 1:
            await asyncio.Event().wait()
        return "1"

    engine = Mortal(respond)

    async def work(asker: Asker) -> str:
        return (await asker.answer(_request("a"))).answer.text

    assert talk(tmp_path, respond, work, engine=engine, timeout=0.05) == "1"
    assert engine.starts == 2


def test_workers_that_share_a_server_are_not_blamed_for_each_others_poison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request crashes the server, which is away for a while then, for everybody."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pipeline.teach.turns._LOOK", 0.01)
    monkeypatch.setattr("pipeline.engines.servers._FIRST_REST", 0.04)
    back = 0.0

    def faults(body: Body, seen: int) -> Fault | None:
        nonlocal back
        now = time.monotonic()
        if now >= back and body["messages"][0]["content"] == "poison":
            back = now + 1.5
        return Fault("drop") if now < back else Fault("slow", seconds=0.1)

    async def worker(number: int, url: str) -> list[str]:
        spec = parse_spec(url)
        assert spec is not None
        store = AnswerStore(str(tmp_path / "answers"))
        engine = HttpEngine(spec, first_wait=0.02, longest_wait=1.0)
        _, losses, doubts = patience(spec)
        asker = Asker(
            engine, store, TeacherSettings(), concurrency=8, losses=losses, doubts=doubts, pause=0.02, shared=True
        )
        try:
            await asker.start()
            names = [f"{number}, {each}" for each in range(60)]
            names[10] = "poison" if number == 0 else names[10]
            given = await asyncio.gather(*(asker.answer(_request(name)) for name in names))
            return [name for name, each in zip(names, given, strict=True) if each.answer.finish_reason == REFUSED]
        finally:
            await asker.close()
            await store.close()

    async def all_of_them(url: str) -> list[list[str]]:
        return await asyncio.gather(*(worker(number, url) for number in range(3)))

    with StubServer(lambda body: "1", faults) as server:
        assert asyncio.run(all_of_them(server.url)) == [["poison"]] + [[]] * 2


def test_an_answer_that_the_engine_gave_up_is_not_kept(tmp_path: Path) -> None:
    endings = ["abort", "error", "stop"]

    def respond(request: Request) -> Answer:
        return Answer("1", endings.pop(0) if question_of(request) == "a" else "stop")

    async def work(asker: Asker) -> str:
        return (await asker.answer(_request("a"))).answer.finish_reason

    assert talk(tmp_path, respond, work) == "stop"
    assert sum(path.read_bytes().count(b"\n") for path in (tmp_path / "answers").glob("*.jsonl")) == 1


def test_a_refusal_is_handed_to_all_who_asked_and_costs_no_engine(tmp_path: Path) -> None:
    def respond(request: Request) -> str:
        raise RequestRefused("too long")

    engine = Mortal(respond)

    async def work(asker: Asker) -> list[Any]:
        given = await asyncio.gather(*(asker.answer(_request("a")) for _ in range(3)))
        return [(each.answer.text, each.answer.finish_reason) for each in given]

    assert talk(tmp_path, respond, work, engine=engine) == [("too long", REFUSED)] * 3
    assert engine.starts == 1


def test_a_replay_with_a_known_model_starts_no_engine(tmp_path: Path) -> None:
    async def work(asker: Asker) -> str:
        return (await asker.answer(_request("a"))).answer.text

    first, second = Mortal(lambda request: "1"), Mortal(lambda request: "2")
    assert talk(tmp_path, None, work, engine=first, model=Model("model", "1")) == "1"  # type: ignore[arg-type]
    assert talk(tmp_path, None, work, engine=second, model=Model("model", "1")) == "1"  # type: ignore[arg-type]
    assert (first.starts, second.starts) == (1, 0)


def test_another_model_than_the_one_that_was_named_is_not_asked(tmp_path: Path) -> None:
    async def work(asker: Asker) -> None:
        await asker.answer(_request("a"))

    with pytest.raises(
        UserError, match=r"model \(revision 1\) answers, but this run is made with model \(revision 2\)"
    ):
        talk(tmp_path, lambda request: "1", work, model=Model("model", "2"))


def test_half_a_character_is_replaced_before_anyone_sees_it(tmp_path: Path) -> None:
    async def work(asker: Asker) -> str:
        return (await asker.answer(_request("a"))).answer.text

    assert talk(tmp_path, lambda request: "a\ud800b\ud83d\ude00", work) == "a\ufffdb😀"
    assert talk(tmp_path, lambda request: "", work) == "a\ufffdb😀"


def test_what_cannot_be_kept_is_not_given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(asker: Asker) -> None:
        def fsync(handle: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", fsync)
        with pytest.raises(UserError, match="the disk is full"):
            await ask(asker.conversation(PROMPT), "a")
        monkeypatch.undo()
        assert await ask(asker.conversation(PROMPT), "a") == 1

    talk(tmp_path, lambda request: "1", work)


@pytest.mark.parametrize("warm_up", [False, True])
def test_a_thousand_conversations_with_an_engine_that_does_everything_wrong(tmp_path: Path, warm_up: bool) -> None:
    """It dies, hangs, gives up, says nonsense and stops too early. What comes of it is what an undisturbed engine gives."""
    chance = random.Random(5)

    def honest(request: Request) -> Answer:
        draw = random.Random(repr(request)).random()  # as a real one: the same request, the same draw
        if draw < 0.15:
            return Answer("nonsense {", "stop", 5, 2)
        if draw < 0.25:
            return Answer("1", "length", 5, 2)
        return Answer(str(int(draw * 100)), "stop", 5, 2)

    async def cruel(request: Request) -> Answer:
        await asyncio.sleep(chance.random() * 0.002)
        draw = chance.random()
        if draw < 0.01:
            raise EngineLost("killed")
        if draw < 0.015:
            await asyncio.Event().wait()
        if draw < 0.03:
            return Answer("", "abort")
        return honest(request)

    async def work(asker: Asker) -> list[Any]:
        async def conversation(number: int) -> Any:
            dialogue = asker.conversation(PROMPT)
            try:
                values = [await ask(dialogue, f"{number % 900}, {step}") for step in range(2)]
            except Rejected as rejected:
                return str(rejected), rejected.answers
            return values, dialogue.provenance("blind")

        return await asyncio.gather(*(conversation(number) for number in range(1000)))

    engine = Mortal(cruel)
    disturbed = talk(tmp_path / "disturbed", cruel, work, engine=engine, concurrency=64, timeout=0.1, warm_up=warm_up)
    assert engine.starts > 20
    assert disturbed == talk(tmp_path / "undisturbed", honest, work)
    assert disturbed == talk(tmp_path / "disturbed", lambda request: "nobody asks", work)
    rejected = [each for each in disturbed if isinstance(each[0], str)]
    assert 0 < len(rejected) < 100
    lines = [path.read_bytes().splitlines() for path in (tmp_path / "disturbed" / "answers").glob("*.jsonl")]
    keys = [line[:75] for each in lines for line in each]
    assert len(keys) == len(set(keys))


def test_a_constraint_that_the_engine_does_not_know_is_left_out_and_the_line_says_so(tmp_path: Path) -> None:
    seen: list[Constraint | None] = []

    def respond(request: Request) -> str:
        seen.append(request.constraint)
        return "1"

    async def probe(engine: Engine, model: Model) -> frozenset[str]:
        return frozenset({"json"})

    constraints = Constraint("json", {"type": "integer"}), Constraint("grammar", 'root ::= "1"')

    async def work(asker: Asker) -> list[str]:
        return [(await asker.answer(Request(_request("a").messages, constraint=each))).key for each in constraints]

    keys = talk(tmp_path, respond, work, probe=probe)
    assert seen == [constraints[0], None]
    [path] = (tmp_path / "answers").glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["key"] for line in lines] == keys
    assert [line["answer"].get("unconstrained") for line in lines] == [None, True]
    assert talk(tmp_path, lambda request: "2", work, probe=probe) == keys


class Crowd:
    """What an engine sees: how many requests were with it when each one came."""

    def __init__(self, first: Callable[[], Awaitable[str]]) -> None:
        self._first = first
        self._now = 0
        self.seen: list[int] = []

    async def __call__(self, request: Request) -> str:
        self._now += 1
        self.seen.append(self._now)
        try:
            await asyncio.sleep(0.03)  # time enough for others to come too early
            return await self._first() if len(self.seen) == 1 else "1"
        finally:
            self._now -= 1


async def _ask_many(asker: Asker) -> list[Any]:
    return await asyncio.gather(*(asker.answer(_request(f"{number}")) for number in range(20)))


def test_a_cold_engine_is_given_one_request_and_then_all(tmp_path: Path) -> None:
    """Who comes second finds in the engine's cache what the first one has left there."""

    async def answers() -> str:
        return "1"

    crowd = Crowd(answers)
    talk(tmp_path, crowd, _ask_many, warm_up=True)
    assert crowd.seen == [1, *range(1, 20)]


def test_a_cold_engine_whose_first_request_is_refused_is_not_cold_for_ever(tmp_path: Path) -> None:
    async def refuses() -> str:
        raise RequestRefused("too long")

    crowd = Crowd(refuses)
    given = talk(tmp_path, crowd, _ask_many, warm_up=True)
    assert sorted(each.answer.finish_reason for each in given) == [REFUSED] + 19 * ["stop"]
    assert crowd.seen == [1, *range(1, 20)]


def test_a_cold_engine_that_is_lost_over_its_first_request_is_cold_again(tmp_path: Path) -> None:
    async def dies() -> str:
        raise EngineLost("killed")

    crowd = Crowd(dies)
    engine = Mortal(crowd)
    given = talk(tmp_path, crowd, _ask_many, engine=engine, warm_up=True)
    assert [each.answer.finish_reason for each in given] == 20 * ["stop"]
    assert engine.starts == 2
    word = 1
    assert crowd.seen == [1, word, 1, *range(1, 20)]


def test_a_cold_engine_whose_first_request_nobody_wants_any_more_is_given_another(tmp_path: Path) -> None:
    async def hangs() -> str:
        await asyncio.Event().wait()
        return "1"

    crowd = Crowd(hangs)

    async def work(asker: Asker) -> list[Any]:
        first = asyncio.create_task(asker.answer(_request("first")))
        others = asyncio.create_task(_ask_many(asker))
        await asyncio.sleep(0.1)
        assert crowd.seen == [1]
        first.cancel()
        return await others

    assert len(talk(tmp_path, crowd, work, warm_up=True)) == 20
    assert crowd.seen == [1, 1, *range(1, 20)]


def test_a_request_that_kills_every_cold_engine_is_asked_alone_and_given_up(tmp_path: Path) -> None:
    """The first request of every start, and the one that is asked with nothing else in flight, may be the same one."""

    async def respond(request: Request) -> str:
        await asyncio.sleep(0.001)
        if question_of(request) in ("0", "7"):
            raise EngineLost("segmentation fault")
        return "1"

    given = talk(tmp_path, respond, _ask_many, engine=Mortal(respond), warm_up=True, losses=40, concurrency=4)
    assert [number for number, each in enumerate(given) if each.answer.finish_reason == REFUSED] == [0, 7]
