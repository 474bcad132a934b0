"""A plan that was made for one layout, for another: the order stays, whatever moves and whatever is left out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from samples import conversations, layout

from pipeline.errors import Reason, Rejected
from pipeline.grid.schedule import schedule
from pipeline.layout import DROP, Layout
from pipeline.layout_file import load_layout
from pipeline.plan.edges import Edges, streams_for
from pipeline.plan.plan import Segment, check_plan
from pipeline.plan.planners import build_planner
from pipeline.plan.relayout import relayout
from pipeline.plan.route import route
from pipeline.read.conversation import Conversation, Part

CHAT_2, CHAT_3, AGENT = load_layout("chat-2"), load_layout("chat-think-3"), load_layout("agent")
WORLD = {"system": "world", "user": "world", "result": "world"}
LAYOUTS = [
    CHAT_2,
    CHAT_3,
    load_layout("solve-audit-3"),
    load_layout("cognition-10"),
    AGENT,
    load_layout("agent", None, 5),
    layout("world:input", "voice:output", roles={**WORLD, **dict.fromkeys(("think", "answer", "call"), "voice")}),
    layout("world:input", "output:output", roles={**WORLD, "think": "drop", "answer": "output", "call": "output"}),
    layout("user:input", "output:output", roles={**dict.fromkeys(("system", "think", "call", "result"), "drop"),
                                                 "user": "user", "answer": "output"}),
    layout("input:input", "think:internal", "tool:input", "call:output",
           roles={"system": "drop", "user": "input", "think": "think", "answer": "drop", "call": "call",
                  "result": "tool"}),
]  # fmt: skip
PLANNERS: list[tuple[str, dict[str, object]]] = [
    ("sequential", {}),
    ("wait-k", {"k": 1}),
    ("wait-k", {"k": 0}),
    ("wait-k", {"k": 2, "unit": "token"}),
    ("agent", {"latency": 3}),
]


def kept(parts: list[Part], of: Layout) -> list[Part]:
    """The parts that a layout keeps; the example ends where it refuses one."""
    try:
        return route(Conversation(parts, {}), of)[0]
    except Rejected:
        assume(False)
        raise


@st.composite
def plans(draw: st.DrawFn, parts: list[Part], of: Layout) -> list[Segment]:
    """A plan of one of the planners, sometimes with lags and edges that none of them would make."""
    name, options = draw(st.sampled_from(PLANNERS))
    segments = build_planner(name, options, of)(kept(parts, of))
    if draw(st.booleans()):
        for number in range(1, len(segments)):
            edge = st.tuples(st.integers(0, number - 1), st.none() | st.integers(0, 3))
            after = tuple(dict(draw(st.lists(edge, max_size=2))).items())
            lag = draw(st.integers(0, 2))
            segments[number] = msgspec.structs.replace(segments[number], after=after, lag=lag)
    return segments


def ended_before(segments: list[Segment]) -> list[set[int]]:
    """For every segment, those that must have ended when it begins: by edges and by the order of its stream."""
    before: list[set[int]] = []
    newest: dict[str, int] = {}
    for number, segment in enumerate(segments):
        ended: set[int] = set()
        for d, n in segment.after:
            ended |= before[d] | ({d} if n is None else set())
        if segment.stream in newest:
            previous = newest[segment.stream]
            ended |= before[previous] | {previous}
        before.append(ended)
        newest[segment.stream] = number
    return before


@given(st.data(), conversations(), st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS))
@settings(max_examples=400)
def test_order_stays(data: st.DataObject, parts: list[Part], old: Layout, new: Layout) -> None:
    """The new plan fits the conversation, and no segment begins before one that it had to follow has ended."""
    plan, left = data.draw(plans(parts, old)), kept(parts, new)
    planned = kept(parts, old)
    if {part.role for part in left} - {part.role for part in planned}:
        with pytest.raises(Rejected, match="plan again"):
            relayout(plan, parts, old, new)
        return
    relaid = relayout(plan, parts, old, new)
    check_plan(relaid, left, streams_for(new), new.written())
    survivors = [number for number, s in enumerate(plan) if new.roles[planned[s.part].role] != DROP]
    assert [(plan[i].begin, plan[i].end, plan[i].lag) for i in survivors] == [(s.begin, s.end, s.lag) for s in relaid]
    place = {number: index for index, number in enumerate(survivors)}
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=len(relaid), max_size=len(relaid)))
    starts = schedule(relaid, lengths, new.written())
    was, now = ended_before(plan), ended_before(relaid)
    for number in survivors:
        later = place[number]
        earlier = {place[d] for d in was[number] if d in place}
        assert earlier <= now[later]
        for d in earlier:
            horizon = new.written()[relaid[later].stream] and relaid[d].stream != relaid[later].stream
            assert starts[later] >= starts[d] + lengths[d] + horizon
        after = [d for d, _ in relaid[later].after]
        assert len(set(after)) == len(after)


@given(st.data(), conversations(), st.sampled_from(LAYOUTS))
def test_the_same_layout_changes_nothing(data: st.DataObject, parts: list[Part], old: Layout) -> None:
    """Neither where the layouts are equal nor where they differ in nothing that plans are about."""
    plan = data.draw(plans(parts, old))
    assert relayout(plan, parts, old, old) is plan
    renamed = Layout("another", old.streams, old.roles)
    assert relayout(plan, parts, old, renamed) == plan


@given(st.data(), conversations(tools=False))
def test_there_and_back_again(data: st.DataObject, parts: list[Part]) -> None:
    """A layout with more streams can be left again: the rows are those of the plan that was never moved."""
    name, options = data.draw(st.sampled_from(PLANNERS))
    plan = build_planner(name, options, CHAT_3)(kept(parts, CHAT_3))
    back = relayout(relayout(plan, parts, CHAT_3, AGENT), parts, AGENT, CHAT_3)
    assert [msgspec.structs.replace(s, after=()) for s in back] == [msgspec.structs.replace(s, after=()) for s in plan]
    assert all(set(a.after) <= set(b.after) for a, b in zip(plan, back, strict=True))
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=len(plan), max_size=len(plan)))
    written = CHAT_3.written()
    assert schedule(back, lengths, written) == schedule(plan, lengths, written)


TURN = [Part("user", "Why?", 0), Part("think", "Hm.", 1), Part("answer", "So.", 1)]


def test_who_waited_for_a_thought_waits_for_what_it_read() -> None:
    plan = [
        Segment("user", 0, 0, 2),
        Segment("user", 0, 2, 4),
        Segment("think", 1, 0, 3, None, ((1, 2),)),
        Segment("output", 2, 0, 3, None, ((0, None), (2, None)), 5),
    ]
    assert relayout(plan, TURN, CHAT_3, CHAT_2) == [
        Segment("user", 0, 0, 2),
        Segment("user", 0, 2, 4),
        Segment("output", 1, 0, 3, None, ((0, None), (1, None)), 5),
    ]


def test_what_one_stream_kept_in_order_two_keep_by_an_edge() -> None:
    parts = [Part("user", "Why?", 0), Part("system", "Be brief.", 1), Part("answer", "So.", 2)]
    plan = [Segment("user", 0, 0, 4), Segment("user", 1, 0, 9), Segment("output", 2, 0, 3, None, ((1, None),))]
    assert relayout(plan, parts, CHAT_3, AGENT) == [
        Segment("user", 0, 0, 4),
        Segment("system", 1, 0, 9, None, ((0, None),)),
        Segment("output", 2, 0, 3, None, ((1, None),)),
    ]


def test_lanes_are_dealt_to_the_lanes_that_there_are() -> None:
    calls = [Part("call", "{}", 0) for _ in range(5)]
    parts = [*calls, *[Part("result", "1", 1, call) for call in range(5)]]
    plan = [Segment("call", i, 0, 2) for i in range(5)]
    plan += [Segment(f"tool.{i}", 5 + i, 0, 1, None, ((i, None),), 20) for i in range(5)]
    relaid = relayout(plan, parts, load_layout("agent", None, 5), AGENT)
    assert [s.stream for s in relaid[5:]] == ["tool.0", "tool.1", "tool.0", "tool.1", "tool.0"]
    assert [s.after for s in relaid] == [s.after for s in plan]


def test_generated_text_stays_in_its_stream() -> None:
    audit = load_layout("solve-audit-3")
    plan = [
        Segment("user", 0, 0, 4),
        Segment("output", 1, 0, 3, None, ((0, None),)),
        Segment("audit", -1, 0, 0, "Right.", ((1, None),)),
    ]
    wider = layout("audit:internal", "user:input", "output:output", roles={**audit.roles})
    assert relayout(plan, TURN, audit, wider) == plan
    with pytest.raises(Rejected, match="layout 'chat-2' has no stream 'audit', in which the plan has generated text"):
        relayout(plan, TURN, audit, CHAT_2)


def test_a_plan_that_replaces_its_conversation_asks_nothing_of_its_parts() -> None:
    """It was made for a layout that drops thoughts; that there are recorded ones is no reason to plan again."""
    plan = [Segment("user", -1, 0, 0, "Hey."), Segment("output", -1, 0, 0, "Ho.", ((0, None),))]
    assert relayout(plan, TURN, CHAT_2, CHAT_3) == plan


@pytest.mark.parametrize(
    ("plan", "old", "said"),
    [
        ([Segment("user", 0, 0, 4), Segment("output", 1, 0, 3)], CHAT_2, "made without think parts, .* plan again"),
        ([Segment("user", 0, 0, 4), Segment("output", 1, 0, 3)], CHAT_3, "segment 1: a think part does not go to"),
        ([Segment("user", 0, 0, 4, None, ((7, None),))], CHAT_3, "segment 0: it waits for"),
        ([Segment("user", 9, 0, 4)], CHAT_3, "no part 9"),
    ],
)
def test_a_plan_that_does_not_fit_is_rejected(plan: list[Segment], old: Layout, said: str) -> None:
    with pytest.raises(Rejected, match=said) as caught:
        relayout(plan, TURN, old, AGENT)
    assert caught.value.reason is Reason.PLAN_INVALID


def test_a_long_conversation_gets_no_more_edges_than_it_has_streams() -> None:
    """Thoughts of every turn are left out; nobody inherits what earlier turns have waited for already."""
    parts = [Part(part.role, part.text, 2 * turn + part.message) for turn in range(50) for part in TURN]
    plan = build_planner("wait-k", {}, CHAT_3)(parts)
    assert max(len(segment.after) for segment in relayout(plan, parts, CHAT_3, CHAT_2)) == 1


ROLES = {"system": "system", "user": "user", "think": "think", "answer": "output"}
STREAMS = ("system:input", "user:input", "think:internal", "output:output")
OPEN = layout(*STREAMS, roles=ROLES)
#: Nobody may read the system text any more; thoughts not what is said; answers not the user; and all of it is dropped.
NO_SYSTEM = layout(
    *STREAMS, roles=ROLES, visibility={name: ["user", "think", "output"] for name in ("user", "think", "output")}
)
NO_ANSWERS = layout(
    *STREAMS, roles=ROLES, visibility={name: ["system", "user"] for name in ("system", "user", "think")}
)
NO_USER = layout(*STREAMS, roles=ROLES, visibility={"output": ["think"]}, relay="allowed")
DEAF = layout(*STREAMS, roles=ROLES, visibility={"user": [], "think": ["output"], "output": []}, relay="allowed")
DROPS = layout("user:input", "think:internal", "output:output", roles={**ROLES, "system": "drop"})

TALK = [
    Part("system", "Be brief.", 0),
    Part("user", "One. Two.", 1),
    Part("answer", "Aa. Bb.", 2),
    Part("user", "Three.", 3),
    Part("answer", "Cc.", 4),
]
#: Thoughts of a teacher who had read all that was there; the second answer keeps the default edges.
THOUGHT = [
    Segment("system", 0, 0, 9),
    Segment("user", 1, 0, 4, None, ((0, None),)),
    Segment("user", 1, 4, 9),
    Segment("think", -1, 0, 0, "Hm.", ((1, None),)),
    Segment("output", 2, 0, 7, None, ((3, None), (2, None))),
    Segment("user", 3, 0, 6, None, ((4, None),)),
    Segment("think", -1, 0, 0, "So.", ((5, None),)),
    Segment("output", 4, 0, 3, None, ((6, None), (5, None))),
]
#: The first answer is paced: its second sentence waits for the user's second.
PACED = [
    Segment("system", 0, 0, 9),
    Segment("user", 1, 0, 4, None, ((0, None),)),
    Segment("user", 1, 4, 9),
    Segment("output", 2, 0, 3, None, ((1, None),)),
    Segment("output", 2, 3, 7, None, ((2, None),)),
    Segment("user", 3, 0, 6, None, ((4, None),)),
    Segment("output", 4, 0, 3, None, ((5, None),)),
]


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (NO_SYSTEM, "segment 3 .* 'think', comes from a teacher who had read segment 0 in .* 'system', and hides from 'think'"),
        (NO_ANSWERS, "segment 6 .* 'think', comes from a teacher who had read segment 4 in stream 'output', .* hides"),
        (DEAF, "segment 3 .* 'think', comes from a teacher who had read segment [01] in stream '(system|user)'"),
        (DROPS, "segment 3 .* had read segment 0 in stream 'system', which layout 'test' drops; plan again for this layout"),
    ],
)  # fmt: skip
def test_generated_text_stands_only_where_all_that_its_teacher_read_can_be_read(new: Layout, said: str) -> None:
    """Also what it has no edge to: the second thought waits for the user alone, and was written after the answer was read."""
    with pytest.raises(Rejected, match=said) as caught:
        relayout(THOUGHT, TALK, OPEN, new, taught=True)
    assert caught.value.reason is Reason.CAUSALITY


def test_what_the_old_layout_hid_may_stay_hidden() -> None:
    """The teacher has never been shown it; and whom the recorded text may read, when it waits for all, does not matter."""
    assert relayout(THOUGHT, TALK, NO_ANSWERS, layout(*STREAMS, roles=ROLES, visibility={
        "system": ["user"], "user": ["system"], "think": ["system", "user"], "output": []})  , taught=True) == THOUGHT  # fmt: skip
    with pytest.raises(Rejected, match="segment 6 "):
        relayout(THOUGHT, TALK, OPEN, NO_ANSWERS, taught=True)


def test_pacing_by_what_is_hidden_now_is_rejected() -> None:
    with pytest.raises(
        Rejected, match=r"segment 3 .* 'output', was paced by a teacher with segment 1 .* hides from 'output'"
    ):
        relayout(PACED, TALK, OPEN, NO_USER, taught=True)
    assert relayout(PACED, TALK, OPEN, NO_ANSWERS, taught=True) == PACED
    paced_by_system = [*PACED]
    paced_by_system[3] = msgspec.structs.replace(PACED[3], after=((0, None),))
    with pytest.raises(Rejected, match="was paced by a teacher with segment 0 in stream 'system'") as caught:
        relayout(paced_by_system, TALK, OPEN, NO_SYSTEM, taught=True)
    assert caught.value.reason is Reason.CAUSALITY


def test_to_wait_for_all_input_is_order_in_time() -> None:
    """A teacher's plan in which no answer begins earlier than by default is worth as much as a rule's."""
    plan = [Segment("output", s.part, s.begin, s.end, None, ((2, None),)) if i == 3 else s for i, s in enumerate(PACED)]
    plan[4] = msgspec.structs.replace(PACED[4], after=())
    assert relayout(plan, TALK, OPEN, NO_USER, taught=True) == plan


@given(st.data(), conversations(tools=False), st.sampled_from([NO_SYSTEM, NO_ANSWERS, NO_USER, DEAF]))
@settings(max_examples=100)
def test_default_edges_are_no_evidence(data: st.DataObject, parts: list[Part], new: Layout) -> None:
    """A teacher who chose nothing (every thought passed, every answer unpaced) leaves what can stand in any layout."""
    plan = build_planner("sequential", {}, OPEN)(parts) if data.draw(st.booleans()) else _unpaced(parts)
    assert relayout(plan, parts, OPEN, new, taught=True) == relayout(plan, parts, OPEN, new)


def _unpaced(parts: list[Part]) -> list[Segment]:
    edges = Edges(frozenset({"output"}))
    for index, part in enumerate(parts):
        stream = ROLES[part.role]
        edges.add(part, index, stream, [len(part.text)], [edges.waits(part, stream)])
    return edges.segments


@pytest.mark.parametrize("plan", [THOUGHT, PACED])
@pytest.mark.parametrize("new", [NO_SYSTEM, NO_ANSWERS, NO_USER, DEAF])
def test_a_plan_without_a_teacher_may_wait_for_what_is_hidden(plan: list[Segment], new: Layout) -> None:
    """A rule's edges are order in time."""
    assert relayout(plan, TALK, OPEN, new) == plan


def test_a_table_rests_on_nothing() -> None:
    plan = [Segment("user", -1, 0, 0, "Hey."), Segment("output", -1, 0, 0, "Ho.", ((0, None),))]
    assert relayout(plan, TALK, OPEN, NO_USER, taught=True) == plan


def test_an_edge_that_keeps_the_order_may_not_lead_to_what_is_hidden() -> None:
    """An empty recorded thought is dropped; what it had waited for is not what the next thought may read."""
    recorded = [Part("user", "", 0), Part("think", "", 1), Part("user", "Why?", 2), Part("answer", "So.", 3)]
    plan = [
        Segment("user", 0, 0, 0),
        Segment("system", -1, 0, 0, "x"),
    ]
    old = layout("system:internal", "user:input", "think:internal", "output:output", roles={**ROLES, "system": "reject"},
                 visibility={"user": [], "think": ["user", "output"], "output": ["user", "think"]})  # fmt: skip
    new = layout(
        "system:internal", "user:input", "think:internal", "output:output",
        roles={**ROLES, "system": "reject", "think": "drop"},
        visibility={"user": [], "think": ["user", "output"], "output": ["user", "think"]})  # fmt: skip
    plan += [
        Segment("think", 1, 0, 0, None, ((1, None),)),
        Segment("user", 2, 0, 4),
        Segment("think", -1, 0, 0, "Hm.", ((3, None),)),
        Segment("output", 3, 0, 3, None, ((4, None),)),
    ]
    with pytest.raises(
        Rejected, match="segment 3, in stream 'think', would have to wait for segment 1, in stream 'system'"
    ):
        relayout(plan, recorded, old, new, taught=True)
