"""The dialogue of one conversation: valid, invalid, truncated and refused answers; what a plan came from."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from talking import PROMPT, ask, question_of, talk

from pipeline.engines.protocol import Answer, Message, Request, RequestRefused
from pipeline.errors import Reason, Rejected, UserError
from pipeline.plan.plan import GivenAnswer, Provenance
from pipeline.teach.asking import Asker
from pipeline.teach.counters import Counters, Meter
from pipeline.teach.dialogue import Dialogue
from pipeline.teach.prompts import RETRY, Prompt
from pipeline.teach.recorder import PromptRecorder, Recorded
from pipeline.teach.settings import TeacherSettings, teacher_settings


class Teller:
    """Answers in order, and keeps the requests."""

    def __init__(self, *answers: Answer | str | Exception) -> None:
        self._answers = list(answers)
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Answer | str:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def _one(asker: Asker) -> tuple[int | Rejected, Dialogue]:
    dialogue = asker.conversation(PROMPT)
    try:
        return await ask(dialogue, "How many?"), dialogue
    except Rejected as rejected:
        return rejected, dialogue


def test_a_valid_answer_is_taken(tmp_path: Path) -> None:
    teller = Teller("7")
    value, _ = talk(tmp_path, teller, _one, TeacherSettings(template={"enable_thinking": False}))
    assert value == 7
    [request] = teller.requests
    assert request.messages == (Message("user", "How many?"),)
    assert request.template == {"enable_thinking": False}
    assert (request.sampling.temperature, request.sampling.max_tokens, request.sampling.seed) == (0.0, 8, 0)


def test_an_invalid_answer_is_asked_again_and_told_what_was_wrong(tmp_path: Path) -> None:
    teller = Teller("seven", "700", "7")
    value, dialogue = talk(tmp_path, teller, _one, TeacherSettings(temperature=0.1, seed=5))
    assert value == 7
    first, second, third = teller.requests
    assert second.messages[:2] == (first.messages[0], Message("assistant", "seven"))
    assert second.messages[2].role == "user" and second.messages[2].content.startswith('Wrong: "Expecting value')
    assert third.messages[1:] == (Message("assistant", "700"), Message("user", 'Wrong: "700 is not below 100"'))
    assert [request.sampling.temperature for request in teller.requests] == [0.1, 0.4, 0.7]
    assert len({request.sampling.seed for request in teller.requests}) == 3
    assert first.sampling.seed == 5
    [used] = dialogue.provenance("align").answers
    drawn = third.sampling
    assert used == GivenAnswer(used.key, drawn.temperature, drawn.seed, "stop")


def test_what_the_teacher_said_goes_into_the_complaint_as_data(tmp_path: Path) -> None:
    prompt = Prompt("test", {RETRY: "{{ problem }}"})

    def parse(text: str) -> int:
        raise ValueError(f"{text} is wrong")

    async def work(asker: Asker) -> None:
        with pytest.raises(Rejected):
            await asker.conversation(prompt)([Message("user", "x")], None, parse, max_tokens=1, example="")

    teller = Teller("<|im_end|>\n", "b")
    talk(tmp_path, teller, work, TeacherSettings(attempts=2))
    _, answer, complaint = teller.requests[1].messages
    assert answer.content == "\\u003c|im_end|>\n", "or its own words would end the model's turn"
    assert complaint.content == '"\\u003c|im_end|>\\n is wrong"'


def test_after_the_last_attempt_the_conversation_is_rejected_with_all_answers(tmp_path: Path) -> None:
    rejected, _ = talk(tmp_path, Teller("a", "b", "300"), _one, TeacherSettings(attempts=3))
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.answers) == (Reason.TEACHER_INVALID, ("a", "b", "300"))
    assert "300 is not below 100" in rejected.message


def test_a_truncated_answer_is_not_accepted_and_not_repeated(tmp_path: Path) -> None:
    teller = Teller(Answer("7", "length"), "8")
    value, _ = talk(tmp_path, teller, _one)
    assert value == 8, "a truncated answer that happens to parse is still truncated"
    question, beginning, complaint = teller.requests[1].messages
    assert (question,) == teller.requests[0].messages and beginning == Message("assistant", "7…")
    assert "cut off at 8 tokens" in complaint.content
    assert teller.requests[1].sampling != teller.requests[0].sampling
    teller = Teller("x", Answer("y" * 10_000, "length"), "8")
    talk(tmp_path / "other", teller, _one)
    assert [len(request.messages) for request in teller.requests] == [1, 3, 3]
    assert len(teller.requests[2].messages[1].content) < 100


@pytest.mark.parametrize(
    ("endings", "reason"),
    [
        (["length", "length", "length"], Reason.TEACHER_TRUNCATED),
        (["length", "content_filter", "length"], Reason.TEACHER_INVALID),
        (["tool_calls", "stop", ""], Reason.TEACHER_INVALID),
    ],
)
def test_no_finish_reason_but_stop_is_accepted(tmp_path: Path, endings: list[str], reason: Reason) -> None:
    texts = ["not a number" if ending == "stop" else "7" for ending in endings]
    teller = Teller(*(Answer(text, ending) for text, ending in zip(texts, endings, strict=True)))
    rejected, dialogue = talk(tmp_path, teller, _one, TeacherSettings(attempts=3))
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.answers) == (reason, tuple(texts))
    assert dialogue.provenance("align").answers == []


def test_a_refused_request_is_not_asked_again(tmp_path: Path) -> None:
    teller = Teller(RequestRefused("the prompt has 9,000 tokens, the model takes 4,096"))
    rejected, _ = talk(tmp_path, teller, _one)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == Reason.TEACHER_REFUSED and "9,000 tokens" in rejected.message
    assert len(teller.requests) == 1


def test_a_refusal_is_kept_and_replayed_and_a_retry_asks_once_more(tmp_path: Path) -> None:
    def replayed(request: Request) -> str:
        raise AssertionError(f"asked: {request}")

    def outcome(rejected: int | Rejected) -> tuple[str, tuple[str, ...]]:
        assert isinstance(rejected, Rejected) and rejected.reason == Reason.TEACHER_REFUSED
        why, _, remedy = rejected.message.partition(" (")
        assert remedy == "kept; `pipeline retry` asks again)"
        return why, rejected.answers

    first, _ = talk(tmp_path, Teller("x", RequestRefused("too \ud800 long"), RequestRefused("a filter")), _one)
    assert outcome(first) == ("a filter", ("x", "a filter"))
    assert outcome(talk(tmp_path, replayed, _one)[0]) == outcome(first)

    teller = Teller(RequestRefused("too busy"))
    second, _ = talk(tmp_path, teller, _one, rounds=2)
    assert outcome(second) == ("too busy", ("x", "a filter", "too busy"))
    assert len(teller.requests) == 1
    assert outcome(talk(tmp_path, replayed, _one)[0]) == outcome(second)

    value, dialogue = talk(tmp_path, Teller("7"), _one, rounds=3)
    again, repeated = talk(tmp_path, replayed, _one)
    assert value == again == 7
    assert dialogue.provenance("align") == repeated.provenance("align")


def test_where_the_complaint_is_too_long_the_question_is_asked_without(tmp_path: Path) -> None:
    teller = Teller("x" * 1000, RequestRefused("too long"), "7")
    value, _ = talk(tmp_path, teller, _one)
    assert value == 7
    assert [len(request.messages) for request in teller.requests] == [1, 3, 1]
    assert teller.requests[2].sampling == teller.requests[1].sampling != teller.requests[0].sampling


def test_a_replay_asks_nothing_and_says_the_same(tmp_path: Path) -> None:
    def replayed(request: Request) -> str:
        raise AssertionError(f"asked: {request}")

    value, dialogue = talk(tmp_path, Teller("x", Answer("7", "length"), "900", "9"), _one)
    again, repeated = talk(tmp_path, replayed, _one)
    assert value == again == 9
    assert dialogue.provenance("align") == repeated.provenance("align")
    # The same with all attempts in vain.
    settings = TeacherSettings(attempts=3)
    rejected, _ = talk(tmp_path / "other", Teller("x", Answer("7", "length"), "900"), _one, settings)
    repeat, _ = talk(tmp_path / "other", replayed, _one, settings)
    assert str(rejected) == str(repeat)
    assert rejected.answers == repeat.answers  # type: ignore[union-attr]


def test_the_seed_draws_other_answers(tmp_path: Path) -> None:
    for seed in (0, 1):
        talk(tmp_path, Teller("x", str(seed)), _one, TeacherSettings(seed=seed))
    value, _ = talk(tmp_path, Teller(), _one, TeacherSettings(seed=1))
    assert value == 1
    seeds = {TeacherSettings(seed=seed).sampling(attempt, 1).seed for seed in range(100) for attempt in range(100)}
    assert len(seeds) == 100 * 100


def test_what_another_recipe_asked_for_with_more_attempts_is_none_of_a_retrys_answers(tmp_path: Path) -> None:
    few, many = TeacherSettings(attempts=2, warmer=0), TeacherSettings(attempts=4, warmer=0)
    rejected, _ = talk(tmp_path, Teller("x", "y"), _one, few)
    assert isinstance(rejected, Rejected)
    value, _ = talk(tmp_path, Teller("z", "7"), _one, many)
    assert value == 7
    replayed, _ = talk(tmp_path, Teller(), _one, few)
    assert str(replayed) == str(rejected)


def test_provenance_says_where_a_plan_came_from(tmp_path: Path) -> None:
    async def work(asker: Asker) -> tuple[Provenance, Provenance]:
        one, other = asker.conversation(PROMPT), asker.conversation(PROMPT)
        assert [await ask(one, "a"), await ask(one, "b"), await ask(other, "b")] == [1, 2, 2]
        return one.provenance("align"), other.provenance("blind")

    settings = TeacherSettings(temperature=0.2, top_p=0.9, seed=3)
    one, other = talk(tmp_path, lambda request: "1" if question_of(request) == "a" else "2", work, settings)
    assert one == Provenance("align", PROMPT.sha256, "model", "1", 0.2, 0.9, 3, one.answers)
    assert len(one.answers) == 2
    assert other.answers == [one.answers[1]], "who asks the same gets the same answer"
    stored = [path.read_text() for path in (tmp_path / "answers").glob("*.jsonl")]
    assert all(any(f'{{"key":"{answer.key}"' in text for text in stored) for answer in one.answers)
    assert one.answers[0] == GivenAnswer(one.answers[0].key, 0.2, 3, "stop")


def test_the_order_of_answers_is_that_of_the_plan_whatever_comes_first(tmp_path: Path) -> None:
    """Chains of calls in parallel, in a task each, some of them with chains of their own."""

    async def chain(dialogue: Dialogue, name: str, depth: int) -> None:
        await ask(dialogue, f"{name}0")
        if depth:
            await asyncio.gather(*(chain(dialogue, f"{name}0{each}", depth - 1) for each in "ab"))
        await ask(dialogue, f"{name}1")

    async def work(asker: Asker) -> list[str]:
        dialogue = asker.conversation(PROMPT)
        await ask(dialogue, "0")
        await asyncio.gather(*(chain(dialogue, name, 2) for name in "1234"))
        await ask(dialogue, "5")
        return [answer.key for answer in dialogue.provenance("blind").answers]

    seen = []
    for seed in range(5):
        chance = random.Random(seed)

        async def respond(request: Request, chance: random.Random = chance) -> str:
            await asyncio.sleep(chance.random() * 0.005)
            return "1"

        seen.append(talk(tmp_path / str(seed), respond, work))
    seen.append(talk(tmp_path / "0", respond, work))  # from the store: nothing waits for anything
    assert all(keys == seen[0] for keys in seen)
    assert len(set(seen[0])) == len(seen[0]) == 2 + 4 * (2 + 2 * (2 + 2 * 2))

    async def names(asker: Asker) -> list[str]:
        by_key = {(await asker.answer(request)).key: question_of(request) for request in asked}
        return [by_key[key] for key in seen[0]]

    asked: list[Request] = []

    def note(request: Request) -> str:
        asked.append(request)
        return "1"

    talk(tmp_path / "names", note, work)
    assert talk(tmp_path / "names", note, names)[:8] == [
        "0",
        "10",
        "10a0",
        "10a0a0",
        "10a0a1",
        "10a0b0",
        "10a0b1",
        "10a1",
    ]


def test_changing_one_prompt_asks_again_only_what_used_it(tmp_path: Path) -> None:
    asked: list[str] = []

    def respond(request: Request) -> str:
        asked.append(question_of(request))
        return "1"

    def run(**prompts: str) -> None:
        async def work(asker: Asker) -> None:
            for name, template in prompts.items():
                prompt = Prompt(name, {"user.jinja": template, RETRY: "no"})
                for text in ("x", "y"):
                    await ask(asker.conversation(prompt), prompt.render("user.jinja", text=text))

        asked.clear()
        talk(tmp_path, respond, work)

    run(align="Align {{ text }}", blind="Think {{ text }}")
    assert len(asked) == 4
    run(align="Align {{ text }}", blind="Think of {{ text }}")
    assert asked == ['Think of "x"', 'Think of "y"']
    run(align="Align {{ text }}", blind="Think {{ text }}")
    assert asked == []


def test_counters(tmp_path: Path) -> None:
    answers = {"a": ["x", "1"], "b": ["2"], "c": ["x", "y", "z"]}

    async def respond(request: Request) -> Answer:
        await asyncio.sleep(0.01)
        assert seen[0].counters().in_flight >= 1
        return Answer(answers[question_of(request)].pop(0), "stop", 10, 3, 4)

    seen: list[Asker] = []

    async def work(asker: Asker) -> Counters:
        seen[:] = [asker]
        dialogue = asker.conversation(PROMPT)
        await asyncio.gather(*(ask(dialogue, name) for name in ("a", "b", "b", "c")), return_exceptions=True)
        return asker.counters()

    first = talk(tmp_path, respond, work, TeacherSettings(attempts=3))
    assert 0.03 <= first.busy_seconds < first.flight_seconds <= 3 * first.busy_seconds
    expected = Counters(6, 1, 3, 1, 3, 60, 24, 18, 6, 0, first.busy_seconds, 0, first.flight_seconds)
    assert first == expected
    second = talk(tmp_path, respond, work, TeacherSettings(attempts=3))
    assert second == Counters(0, 7, 3, 1, 0, 0, 0, 0, 0, 0, 0.0, 0, 0.0)
    assert (first + second).accepted == 6 and (first + second).stored == 8


def test_a_meter_counts_every_request_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("pipeline.teach.counters.time.monotonic", lambda: clock[0])
    meter = Meter()
    for step, seconds in ((meter.begin, 1), (meter.begin, 2), (meter.end, 4), (meter.end, 8), (meter.begin, 16)):
        step()
        clock[0] += seconds
    seen = meter.snapshot()
    assert (seen.busy_seconds, seen.flight_seconds) == (1 + 2 + 4 + 16, 1 + 2 * 2 + 4 + 16)


def test_a_recorder_shows_what_would_be_asked() -> None:
    recorder = PromptRecorder()

    async def run() -> tuple[int, str]:
        return await recorder([Message("user", "x")], None, int, max_tokens=5, example="42")

    assert asyncio.run(run()) == (42, "42")
    assert recorder.calls == [Recorded((Message("user", "x"),), None, 5, "42")]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"temprature": 1}, "r.yaml: teacher.temprature: no such setting; known are temperature, top_p"),
        ({"temperature": -1}, "r.yaml: teacher.temperature: Expected `float` >= 0.0, not -1"),
        ({"top_p": "high"}, "r.yaml: teacher.top_p: Expected `float`, got `str`, not 'high'"),
        ({"attempts": 0}, "r.yaml: teacher.attempts: Expected `int` >= 1, not 0"),
        ({"seed": 1 << 31}, "r.yaml: teacher.seed: Expected `int`"),
        ({"template": []}, "r.yaml: teacher.template: Expected `object`, got `array`"),
    ],
)
def test_settings_name_the_key_that_is_wrong(document: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as raised:
        teacher_settings(document, "r.yaml")
    assert str(raised.value).startswith(said)


def test_settings_have_defaults() -> None:
    assert teacher_settings({}, "r.yaml") == TeacherSettings(0.0, 1.0, 4, 0.3, 0, {})
    assert list(teacher_settings({"template": {"b": 1, "a": 2}}, "").template) == ["a", "b"]
