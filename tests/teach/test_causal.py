"""What a prompt may show: exactly what the schedule guarantees to have been said, whatever the tokens; more is refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import conversations, layout
from teaching import Teacher, chances, rows, teach, valid

from pipeline.engines.protocol import Constraint
from pipeline.errors import Reason, Rejected
from pipeline.layout_file import load_layout
from pipeline.plan.edges import Edges, spoken_streams
from pipeline.plan.plan import Segment
from pipeline.plan.planners import build_planner
from pipeline.read.conversation import Part
from pipeline.teach import causal
from pipeline.teach.causal import Order, Shown, Thread
from pipeline.teach.prompts import load_prompt

AGENT = load_layout("agent")
CHAT = load_layout("chat-think-3")
AGENT_ONE_LANE = layout(
    "user:input", "tool:input", "think:internal", "out:output",
    roles={"user": "user", "think": "think", "answer": "out", "call": "out", "result": "tool"},
)  # fmt: skip
NOTHING = Constraint("json", {})


@given(
    parts=conversations(),
    planner=st.sampled_from(
        [("wait-k", {"k": 1}), ("wait-k", {"k": 2, "unit": "token"}), ("agent", {}), ("sequential", {})]
    ),
    chance=chances(),
)
@settings(max_examples=80)
def test_what_has_ended_is_what_every_schedule_puts_before(
    parts: list[Part], planner: tuple[str, dict[str, Any]], chance: random.Random
) -> None:
    """Sound: text at a place starts beyond the horizon of all of it. Complete: of anything else, some schedule puts the end
    later, so a prompt that showed it would leak."""
    segments = build_planner(planner[0], planner[1], AGENT)(parts)
    order = Order(segments)
    for _ in range(6):
        after = tuple((chance.randrange(len(segments)), None) for _ in range(chance.randint(0, 2)))
        ended = order.ended("think", after)
        place = Segment("think", -1, 0, 0, "x", after)
        short = [chance.choice((0, 1, 3)) for _ in segments]
        placed = rows([*segments, place], [*short, 1], AGENT)
        for number, segment in enumerate(segments):
            horizon = 1 if segment.stream != "think" else 0
            if number <= ended.get(segment.stream, -1):
                assert placed[-1][0] >= placed[number][1] + horizon
            else:
                long = [100_000 if i == number else length for i, length in enumerate(short)]
                again = rows([*segments, place], [*long, 1], AGENT)
                assert again[-1][0] < again[number][1] + horizon


def thread_after(parts: Sequence[Part], shown_layout: Any = CHAT, stream: str = "think") -> tuple[Thread, Edges]:
    """A thread over a plan of default edges, one segment per part."""
    edges = Edges(spoken_streams(shown_layout))
    for index, part in enumerate(parts):
        name = shown_layout.roles[part.role]
        edges.add(part, index, name, [len(part.text)], [edges.waits(part, name)])
    return Thread(load_prompt("blind"), shown_layout, parts, edges, stream, thoughts=3, characters=100), edges


TALK = [Part("user", "Hello", 0), Part("answer", "Hi", 1), Part("user", "And?", 2), Part("answer", "So.", 3)]


def ask(thread: Thread, after: int | tuple[Any, ...]) -> Any:
    teacher = Teacher(lambda messages, constraint: "x")
    place = ((after, None),) if isinstance(after, int) else after
    said = asyncio.run(thread.ask(teacher, place, NOTHING, lambda text: text, max_tokens=9, example="x"))
    assert len(teacher.calls) == 1
    return said


def test_a_thread_shows_what_is_new_and_known() -> None:
    thread, _ = thread_after(TALK)
    assert [shown.segment for shown in thread.news(((0, None),))] == [0]
    thread.tell("read.jinja", news=thread.news(((0, None),)) or [thread.show(0)])
    ask(thread, 0)
    assert [(shown.role, shown.text) for shown in thread.news(((2, None),))] == [("answer", "Hi"), ("user", "And?")]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_one_segment_too_many_is_never_sent(number: int) -> None:
    thread, _ = thread_after(TALK)
    thread.tell("read.jinja", news=[thread.show(0), thread.show(number)])
    with pytest.raises(
        Rejected, match=f"shows segment {number} in stream '{TALK_STREAM[number]}', which may end later"
    ) as caught:
        ask(thread, 0)
    assert caught.value.reason is Reason.CAUSALITY


TALK_STREAM = {1: "output", 2: "user", 3: "output"}


def test_what_was_shown_for_a_later_place_is_too_much_for_an_earlier_one() -> None:
    thread, _ = thread_after(TALK)
    thread.tell("read.jinja", news=thread.news(((2, None),)))
    ask(thread, 2)
    with pytest.raises(Rejected, match="causality"):
        ask(thread, 0)


def test_what_the_stream_may_not_read_is_neither_news_nor_sent() -> None:
    hidden = layout(
        "user:input", "tool:input", "think:internal", "out:output",
        roles={"user": "user", "think": "think", "answer": "out", "call": "out", "result": "tool"},
        visibility={"user": [], "tool": [], "think": ["user"]},
    )  # fmt: skip
    parts = [
        Part("user", "a", 0),
        Part("call", "c", 1),
        Part("result", "r", 2, 1),
        Part("answer", "b", 3),
        Part("user", "d", 4),
    ]
    thread, _ = thread_after(parts, hidden)
    assert [shown.segment for shown in thread.news(((4, None),))] == [0, 4]
    thread.tell("read.jinja", news=[thread.show(3)])
    with pytest.raises(Rejected, match="stream 'out', which it may not read") as caught:
        ask(thread, 4)
    assert caught.value.reason is Reason.CAUSALITY


@pytest.mark.parametrize("value", ["text", ["text"], {"a": 1}, [{"text": "x"}], Part("user", "x", 0), [[b"x"]]])
def test_text_reaches_a_prompt_by_its_segments_number_alone(value: Any) -> None:
    thread, _ = thread_after(TALK)
    with pytest.raises(TypeError, match="text is shown by its segment's number"):
        thread.tell("read.jinja", news=value)


def test_generated_text_stands_where_it_was_checked() -> None:
    thread, edges = thread_after(TALK)
    with pytest.raises(RuntimeError):
        thread.say("too early", thought=True)
    thread.tell("read.jinja", news=thread.news(((0, None),)))
    ask(thread, 0)
    number = thread.say("a thought", thought=True)
    assert edges.segments[number] == Segment("think", -1, 0, 0, "a thought", ((0, None),))
    assert thread.news(((2, None),))[-1].segment == 2  # what it said itself is no news: its own answer holds it


def test_what_has_been_read_once_is_known_from_then_on() -> None:
    """A user who does not wait for a tool may come before its result; a thought on what they say, made by a teacher who
    has read the result, may not."""
    parts = [Part("user", "a", 0), Part("call", "c", 1), Part("result", "r", 2, 1), Part("user", "d", 3)]
    thread, edges = thread_after(parts, AGENT_ONE_LANE)
    for read, after in ((0, ((0, None),)), (2, ((2, None),)), (3, ((3, None), (2, None)))):
        assert thread.after(read) == after
        thread.tell("read.jinja", news=thread.news(after))
        ask(thread, after)
    assert Order(edges.segments).ended("think", ((3, None),)).get("tool") is None


def test_half_a_segment_is_not_all_of_it() -> None:
    """Who waits for the first tokens of a segment has not read the rest."""
    segments = [Segment("user", 0, 0, 5), Segment("output", 1, 0, 2, None, ((0, 2),))]
    assert Order(segments).ended("think", ((1, None),)) == {"output": 1}


@pytest.mark.parametrize("planner", ["blind", "audit"])
@given(parts=conversations(), chance=chances())
@settings(max_examples=40)
def test_a_planner_that_shows_the_next_segment_is_stopped(
    planner: str, parts: list[Part], chance: random.Random
) -> None:
    """The mutation that matters: the same planners, but every prompt shows one segment more than it may."""
    parts = [Part("user", "One. Two. Three.", 0), Part("answer", "Four. Five. Six.", 1), *parts]
    wide = layout(
        "system:input", "user:input", "tool:input", "think:internal", "call:output", "output:output", "audit:internal",
        roles={"system": "system", "user": "user", "think": "think", "answer": "output", "call": "call", "result": "tool"},
    )  # fmt: skip
    teach(planner, wide, parts, valid(chance))  # as it is, it passes
    honest = Thread.news

    def greedy(thread: Thread, after: Any) -> list[Shown]:
        news = honest(thread, after)
        return news + [thread.show(number) for number in thread._pending[:1]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal.Thread, "news", greedy)
        with pytest.raises(Rejected) as caught:
            teach(planner, wide, parts, valid(chance))
    assert caught.value.reason is Reason.CAUSALITY
