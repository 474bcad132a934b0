"""A plan that came from outside is checked against its conversation; a stored plan is read back as it was."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from samples import conversations

from pipeline import schema
from pipeline.errors import Reason, Rejected
from pipeline.layout_file import load_layout
from pipeline.plan.edges import streams_for
from pipeline.plan.plan import Plan, Segment, check_plan, replaces
from pipeline.plan.planners import build_planner
from pipeline.read.conversation import Part
from pipeline.store.plans import plans_or_faults

LAYOUT = load_layout("agent")
PARTS = [Part("user", "Hello", 0), Part("answer", "Hi!", 1)]
NOTE = Segment("output", -1, 0, 0, "So.")
GOOD = [Segment("user", 0, 0, 5), Segment("output", 1, 0, 2, None, ((0, None),)), Segment("output", 1, 2, 3)]


def test_a_good_plan_passes() -> None:
    check_plan(GOOD, PARTS, streams_for(LAYOUT), LAYOUT.written())


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        (GOOD[:2], "part 1 is not covered"),
        (GOOD[1:], "does not come before it"),
        ([GOOD[0], Segment("output", 1, 0, 2), Segment("output", 1, 1, 3)], "without gaps"),
        ([GOOD[0], Segment("output", 1, 0, 9)], "without gaps"),
        ([GOOD[0], Segment("user", 1, 0, 3)], "does not go to stream 'user'"),
        ([GOOD[0], Segment("output", 1, 0, 3), Segment("output", 2, 0, 1)], "no part 2"),
        ([Segment("user", 0, 0, 5, None, ((0, None),)), *GOOD[1:]], "does not come before it"),
        ([Segment("user", 0, 0, 5, None, (), -1), *GOOD[1:]], "negative"),
        ([GOOD[0], Segment("output", 1, 0, 3, None, ((0, -1),))], "negative"),
        ([*GOOD, Segment("output", -1, 0, 0)], "no part -1"),
        ([*GOOD, Segment("audit", -1, 0, 2, "ok")], "no stream 'audit'"),
        ([], "part 0 is not covered"),
        ([Segment("output", 1, 0, 2), *GOOD[:1], NOTE, Segment("output", 1, 2, 3)], "segment 2: it interrupts part 1"),
        ([*GOOD, Segment("user", -1, 0, 0, "I say.")], "generated in stream 'user', which the world writes"),
        ([Segment("user", 0, 0, 5, "Hello"), *GOOD[1:]], "a text of its own, but is a piece of a part"),
        ([NOTE, GOOD[0]], "part 1 is not covered"),
    ],
)
def test_a_plan_that_does_not_fit_is_rejected(segments: list[Segment], said: str) -> None:
    with pytest.raises(Rejected, match=said) as caught:
        check_plan(segments, PARTS, streams_for(LAYOUT), LAYOUT.written())
    assert caught.value.reason is Reason.PLAN_INVALID


TWO = [
    Part("user", "Hello", 0),
    Part("think", "abc", 1),
    Part("think", "", 1),
    Part("think", "def", 1),
    Part("answer", "Hi!", 1),
]


@pytest.mark.parametrize(
    ("thoughts", "said"),
    [
        ([("think", 1, 0, 3), ("think", 2, 0, 0), ("think", 3, 0, 3)], None),
        ([("think", 3, 0, 3), ("think", 2, 0, 0), ("think", 1, 0, 3)], None),  # an order that no stream forbids
        ([("think", 1, 0, 1), ("think", 3, 0, 3), ("think", 1, 1, 3), ("think", 2, 0, 0)], "interrupts part 1"),
        ([("think", 1, 0, 1), ("think", 2, 0, 0), ("think", 1, 1, 3), ("think", 3, 0, 3)], "interrupts part 1"),
        ([("think", 1, 0, 3), ("think", 3, 0, 3), ("think", 1, 3, 3), ("think", 2, 0, 0)], "part 1 has ended"),
        ([("think", 2, 0, 0), ("think", 1, 0, 3), ("think", 2, 0, 0), ("think", 3, 0, 3)], "part 2 has ended"),
    ],
)
def test_parts_of_one_stream_are_said_one_after_the_other(
    thoughts: list[tuple[str, int, int, int]], said: str | None
) -> None:
    segments = [Segment("user", 0, 0, 5), *[Segment(*thought) for thought in thoughts], Segment("output", 4, 0, 3)]
    if said is None:
        check_plan(segments, TWO, streams_for(LAYOUT), LAYOUT.written())
        return
    with pytest.raises(Rejected, match=said):
        check_plan(segments, TWO, streams_for(LAYOUT), LAYOUT.written())


def test_text_may_be_generated_between_parts_and_beside_them() -> None:
    segments = [
        Segment("output", 1, 0, 2), Segment("user", 0, 0, 5), Segment("think", -1, 0, 0, "Hm."), Segment("output", 1, 2, 3), NOTE
    ]  # fmt: skip
    check_plan(segments, PARTS, streams_for(LAYOUT), LAYOUT.written())


def test_a_plan_of_generated_text_alone_replaces_its_conversation() -> None:
    spoken = [Segment("user", -1, 0, 0, "Hey."), NOTE]
    assert replaces(spoken) and not replaces(GOOD) and not replaces([*GOOD, NOTE]) and not replaces([])
    check_plan(spoken, PARTS, streams_for(LAYOUT), LAYOUT.written())
    with pytest.raises(Rejected, match="no stream 'void'"):
        check_plan([Segment("void", -1, 0, 0, "x")], PARTS, streams_for(LAYOUT), LAYOUT.written())
    with pytest.raises(Rejected, match="waits for a segment"):
        check_plan([Segment("user", -1, 0, 0, "x", ((0, None),))], PARTS, streams_for(LAYOUT), LAYOUT.written())


@given(conversations())
@settings(max_examples=50)
def test_a_plan_line_satisfies_its_schema_and_is_read_back_as_it_was(parts: list[Part]) -> None:
    plan = Plan("chats.jsonl:7", build_planner("agent", {}, LAYOUT)(parts))
    line = msgspec.json.encode(plan)
    assert schema.problems("plan", json.loads(line)) == []
    assert list(plans_or_faults(line + b"\n")) == [plan]
