"""What every planner promises, and what each of them is defined to do, checked on the rows of its schedule."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import conversations, layout, texts

from pipeline.grid.schedule import schedule
from pipeline.layout import Layout
from pipeline.layout_file import load_layout
from pipeline.plan.edges import Edges, streams_for
from pipeline.plan.plan import Segment, check_plan
from pipeline.plan.planners import build_planner
from pipeline.plan.segments import sentences
from pipeline.read.conversation import Part

ONE_TOOL = layout(
    "in:input", "tool:input", "think:internal", "out:output",
    roles={"system": "in", "user": "in", "think": "think", "answer": "out", "call": "out", "result": "tool"},
)  # fmt: skip
LAYOUTS = {"agent": load_layout("agent"), "one tool": ONE_TOOL, "five lanes": load_layout("agent", lanes=5)}
PLANNERS: list[tuple[str, dict[str, Any]]] = [
    ("sequential", {}),
    ("agent", {}),
    ("agent", {"latency": 3, "priority": {"b": -1, "c": 2}}),
    *[("wait-k", {"unit": unit, "k": k}) for unit in ("sentence", "token") for k in (0, 1, 4, "full")],
]


def plan(parts: Sequence[Part], planner: str, layout: Layout, **options: Any) -> list[Segment]:
    return build_planner(planner, options, layout)(parts)


def rows(segments: Sequence[Segment], lengths: Sequence[int], layout: Layout) -> list[tuple[int, int]]:
    """First row and the row after the last of every segment."""
    starts = schedule(segments, lengths, layout.written())
    return [(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def token_counts(segments: Sequence[Segment], draw: st.DataObject) -> list[int]:
    return [draw.draw(st.integers(1, 5)) if segment.end > segment.begin else 0 for segment in segments]


@pytest.mark.parametrize(("planner", "options"), PLANNERS)
@given(parts=conversations(), layout_name=st.sampled_from(sorted(LAYOUTS)))
@settings(max_examples=20)
def test_a_plan_covers_every_part_once_and_waits_only_for_what_came_before(
    planner: str, options: dict[str, Any], layout_name: str, parts: list[Part]
) -> None:
    layout = LAYOUTS[layout_name]
    segments = plan(parts, planner, layout, **options)
    check_plan(segments, parts, streams_for(layout), layout.written())
    said = ["" for _ in parts]
    for number, segment in enumerate(segments):
        assert all(d < number for d, _ in segment.after)
        assert segment.stream in layout.lanes(layout.roles[parts[segment.part].role])
        said[segment.part] += parts[segment.part].text[segment.begin : segment.end]
    assert said == [part.text for part in parts]
    for index in range(len(parts)):
        assert sum(segment.part == index for segment in segments) >= 1  # an empty part too: order passes through it


@given(layout_name=st.sampled_from(sorted(LAYOUTS)), parts=conversations(), data=st.data())
@settings(max_examples=40)
def test_sequential_says_one_part_after_another(layout_name: str, parts: list[Part], data: st.DataObject) -> None:
    """The order of a single stream; what the model writes begins one row later, when it can know the other stream."""
    layout = LAYOUTS[layout_name]
    segments = plan(parts, "sequential", layout)
    assert [segment.part for segment in segments] == list(range(len(parts)))
    placed = rows(segments, token_counts(segments, data), layout)
    written = layout.written()
    for before, after, (_, end), (start, _) in zip(segments, segments[1:], placed, placed[1:], strict=False):
        assert start == end + (written[after.stream] and before.stream != after.stream)


def newest_by_definition(edges: Edges, heard: int, stream: str) -> list[int]:
    """The last segment of every other stream among the input parts from number ``heard`` on, all of them looked at."""
    newest = dict(edges._heard[heard:])
    newest.pop(stream, None)
    return list(newest.values())


@pytest.mark.parametrize("few", [0, 1, 16])
@pytest.mark.parametrize(("planner", "options"), PLANNERS[1:])
@given(
    pieces=st.lists(conversations(text=st.sampled_from(["", "One.", "One. Two? Three."])), min_size=1, max_size=6),
    times=st.integers(1, 4),
    layout_name=st.sampled_from(sorted(LAYOUTS)),
)
@settings(max_examples=12)
def test_a_long_conversation_has_the_edges_of_the_definition(
    planner: str, options: dict[str, Any], few: int, pieces: list[list[Part]], times: int, layout_name: str
) -> None:
    parts: list[Part] = []
    for piece in pieces * times:
        first = len(parts)
        parts += [
            msgspec.structs.replace(part, reply_to=part.reply_to + first) if part.reply_to >= 0 else part
            for part in piece
        ]
    layout = LAYOUTS[layout_name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.plan.edges._FEW", few)
        found = plan(parts, planner, layout, **options)
        patch.setattr(Edges, "_newest_inputs", newest_by_definition)
        assert found == plan(parts, planner, layout, **options)


@pytest.mark.parametrize(("planner", "options"), [*PLANNERS[:2], ("wait-k", {}), ("wait-k", {"unit": "token"})])
def test_the_cost_of_a_part_does_not_grow_with_the_conversation(planner: str, options: dict[str, Any]) -> None:
    """One that has 50 times as many turns; where everything that was heard is looked at, a part costs 10 times as much."""
    made = build_planner(planner, options, LAYOUTS["agent"])

    def cost(turns: int) -> float:
        parts = dialogue(*["One. Two.", "Yes. No."] * turns)
        costs = []
        for _ in range(3):
            began = time.process_time()
            for _ in range(10_000 // turns):
                made(parts)
            costs.append(time.process_time() - began)
        return min(costs)

    assert cost(10_000) < 4 * cost(200)


def settled(segments: Sequence[Segment]) -> list[set[int]]:
    """For every segment, the parts that have been said in full before it begins: by its edges, and its stream's order."""
    before: list[set[int]] = []
    newest: dict[str, int] = {}
    last = {segment.part: number for number, segment in enumerate(segments)}
    for number, segment in enumerate(segments):
        waits = [d for d, n in segment.after if n is None]
        waits += [newest[segment.stream]] if segment.stream in newest else []
        ended = {segments[d].part for d in waits if last[segments[d].part] == d}
        before.append(ended.union(*(before[d] for d in waits)))
        newest[segment.stream] = number
    return before


def dialogue(*contents: str) -> list[Part]:
    return [Part("answer" if i % 2 else "user", text, i) for i, text in enumerate(contents)]


sentence = st.sampled_from(["One.", "Two?", "Three three!", "Four"])
sentence_texts = st.lists(sentence, min_size=1, max_size=5).map(" ".join)


@given(st.lists(st.tuples(sentence_texts, sentence_texts), min_size=1, max_size=3), st.integers(0, 6), st.data())
@settings(max_examples=80)
def test_wait_k_by_sentence(turns: list[tuple[str, str]], k: int, data: st.DataObject) -> None:
    """Answer unit t starts as soon as the unit before it and input unit min(k + t - 1, last) have been said."""
    layout = load_layout("chat-2")
    parts = dialogue(*[text for turn in turns for text in turn])
    segments = plan(parts, "wait-k", layout, unit="sentence", k=k)
    placed = rows(segments, token_counts(segments, data), layout)
    before = read = 0  # where the answers and the questions so far end
    for user in range(0, len(parts), 2):
        inputs = [place for place, segment in zip(placed, segments, strict=True) if segment.part == user]
        answers = [place for place, segment in zip(placed, segments, strict=True) if segment.part == user + 1]
        assert len(inputs) == len(sentences(parts[user].text))
        assert len(answers) == len(sentences(parts[user + 1].text))
        assert inputs[0][0] == max(before, read)  # a user answers what was said
        read = inputs[-1][1]
        for t, (start, end) in enumerate(answers, 1):
            unit = min(k + t - 1, len(inputs))
            assert start == max(before, inputs[unit - 1][1] + 1 if unit else 0)
            before = end


@pytest.mark.parametrize("unit", ["sentence", "token"])
@given(conversations(tools=False), st.data())
@settings(max_examples=30)
def test_wait_for_all_is_reading_before_writing(unit: str, parts: list[Part], data: st.DataObject) -> None:
    layout = load_layout("chat-think-3")
    segments = plan(parts, "wait-k", layout, unit=unit, k="full")
    placed = rows(segments, token_counts(segments, data), layout)
    for segment, (start, _) in zip(segments, placed, strict=True):
        if parts[segment.part].role != "answer":
            continue
        heard = [s.stream == "user" and s.part < segment.part for s in segments]
        earlier = [end for (_, end), before in zip(placed, heard, strict=True) if before]
        assert start > max(earlier) or max(earlier) == 0


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 14))
def test_wait_k_by_token(read: int, said: int, k: int) -> None:
    """Answer token t stands two rows after input token min(k + t - 1, last) or later: that is when it can know it."""
    layout = load_layout("chat-2")
    segments = plan(dialogue("x", "y"), "wait-k", layout, unit="token", k=k)
    (input_start, input_end), (start, end) = rows(segments, [read, said], layout)
    knows = [row - 1 for row in range(start, end)]  # a token knows what other streams say before this row
    for t in range(1, said + 1):
        unit = min(k + t - 1, read)
        if unit:
            assert knows[t - 1] > input_start + unit - 1
    assert start == input_start + min(k, read) + 1  # and no later than the first of these asks for
    assert input_end - input_start == read


def test_k_0_waits_for_nothing_of_its_turn() -> None:
    layout = load_layout("chat-2")
    segments = plan(
        dialogue("One. Two.", "Yes. No.", "Three. Four.", "Yes. No."), "wait-k", layout, unit="sentence", k=0
    )
    first, third = segments[2], segments[6]
    assert first.after == ()
    assert third.after == segments[4].after  # what the user waited for, not the user


def assert_nothing_is_said_too_early(parts: Sequence[Part], index: int, before: set[int]) -> None:
    """A part that the model wrote comes after every input before it; a call or an answer after the thoughts too."""
    wanted = {i for i in range(index) if parts[i].role in ("system", "user", "result")}
    if parts[index].role != "think":
        wanted |= {i for i in range(index) if parts[i].role == "think"}
    assert wanted <= before


@given(conversations())
@settings(max_examples=80)
def test_wait_k_leaves_what_is_no_answer_to_a_user_its_default_edges(parts: list[Part]) -> None:
    """Thoughts, calls, results, and what follows results are paced by no input unit."""
    layout = load_layout("agent")
    segments = plan(parts, "wait-k", layout, unit="sentence", k=1)
    before = settled(segments)
    first = {segment.part: number for number, segment in reversed(list(enumerate(segments)))}
    last = {segment.part: number for number, segment in enumerate(segments)}
    paced = True
    for index, part in enumerate(parts):
        if part.role in ("user", "system"):
            paced = True
        elif part.role == "result":
            paced = False
            assert segments[first[index]].after == ((last[part.reply_to], None),)
        elif part.role != "answer" or not paced:
            assert_nothing_is_said_too_early(parts, index, before[first[index]])
        else:  # paced by the user, but not ahead of a thought, nor of a result of an earlier turn
            turn = max(i for i in range(index) if parts[i].role in ("user", "system"))
            while turn and parts[turn - 1].role in ("user", "system", "think"):
                turn -= 1
            wanted = {i for i in range(index) if parts[i].role == "think"}
            wanted |= {i for i in range(turn) if parts[i].role == "result"}
            assert wanted <= before[first[index]]


@given(conversations(), st.sampled_from([1, 2, 3]), st.data())
@settings(max_examples=30)
def test_agent_deals_calls_to_lanes_by_priority(parts: list[Part], lanes: int, data: st.DataObject) -> None:
    """The calls of a turn sorted by (priority, order): the j-th in lane j mod n, after that lane's previous result."""
    priority = {"a": 1, "b": 0, "c": 1}
    layout = load_layout("agent", lanes=lanes)
    segments = plan(parts, "agent", layout, priority=priority, latency=7, rows_per_second=10.0, max_latency=50)
    of_part = {segment.part: number for number, segment in enumerate(segments)}
    lane_of: dict[int, int] = {}
    turn: list[int] = []
    for index, part in [*enumerate(parts), (len(parts), Part("user", "", 0))]:
        if part.role == "call":
            turn.append(index)
        elif part.role in ("user", "system", "result"):
            for place, call in enumerate(sorted(turn, key=lambda i: (priority[parts[i].tool or ""], i))):
                lane_of[call] = place % lanes
            turn = []
    newest: dict[str, int] = {}
    for number, segment in enumerate(segments):
        part = parts[segment.part]
        if part.role != "result":
            assert segment.lag == 0
            continue
        call = parts[part.reply_to]
        assert segment.stream == layout.lanes("tool")[lane_of[part.reply_to]]
        waits = {d for d, n in segment.after if n is None}
        assert waits == {of_part[part.reply_to]} | ({newest[segment.stream]} if segment.stream in newest else set())
        newest[segment.stream] = number
        if call.seconds is None or part.seconds is None:
            assert segment.lag == 7
        else:
            assert segment.lag == min(max(round((part.seconds - call.seconds) * 10), 0), 50)
    lengths = token_counts(segments, data)
    placed = rows(segments, lengths, layout)
    for number, segment in enumerate(segments):
        if parts[segment.part].role == "result":
            called = of_part[parts[segment.part].reply_to]
            assert placed[number][0] >= placed[called][1] + segment.lag


@given(conversations())
@settings(max_examples=120)
def test_default_edges_of_the_agent(parts: list[Part]) -> None:
    """DESIGN §3: who waits for whom where the planner says nothing else."""
    layout = load_layout("agent")
    segments = plan(parts, "agent", layout)
    before = settled(segments)
    number = {segment.part: index for index, segment in enumerate(segments)}
    for index, part in enumerate(parts):
        earlier = range(index)
        if part.role == "user":
            assert {i for i in earlier if parts[i].role in ("system", "call", "answer")} <= before[number[index]]
        elif part.role == "system":
            assert {i for i in earlier if parts[i].role in ("user", "call", "answer")} <= before[number[index]]
        elif part.role == "result":
            assert part.reply_to in before[number[index]]
        else:
            assert_nothing_is_said_too_early(parts, index, before[number[index]])


def test_edges_are_not_repeated() -> None:
    """Many thoughts after many results: a stream keeps its own order, so each result is waited for once."""
    calls = [Part("call", "c", 0, tool="a") for _ in range(300)]
    results = [Part("result", "r", 1, reply_to=i) for i in range(300)]
    thoughts = [Part("think", "t", 2) for _ in range(300)]
    segments = plan([*calls, *results, *thoughts], "agent", load_layout("agent", lanes=100))
    assert sum(len(segment.after) for segment in segments) < 1_000


@pytest.mark.parametrize("piece", [".", "!", '!"', "…", ".)", "\n", " \n", "a\n", " ", "。", "x.", "a.\n\n", "1. "])
def test_sentences_take_linear_time(piece: str) -> None:
    """A megabyte of punctuation or blank lines, which corpora do hold, is cut as fast as a text."""
    started = time.perf_counter()
    sentences(piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - started < 5


@given(texts(10))
@settings(max_examples=150)
def test_sentences_joined_are_the_text(text: str) -> None:
    ends = sentences(text)
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == len(text)
    units = [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert "".join(units) == text
    # A unit owns the white space before it, and none after it; the last has what nothing follows.
    assert not any(unit != unit.rstrip() for unit in units[:-1])


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("Hello there. How are you?", ["Hello there.", " How are you?"]),
        ("So Dr. Smith met J. Doe, e.g. here. Yes!", ["So Dr. Smith met J. Doe, e.g. here.", " Yes!"]),
        ("1. First\n2. Second", ["1. First", "\n2. Second"]),
        ("It costs 3.50 now. Buy", ["It costs 3.50 now.", " Buy"]),
        ("你好。你好吗？好", ["你好。", "你好吗？", "好"]),
        ("他说。「你好！」好", ["他说。", "「你好！」", "好"]),
        ('"Yes!" he said. "No?!"\n\nThen', ['"Yes!"', " he said.", ' "No?!"', "\n\nThen"]),
        ('He said "no." Then left', ['He said "no."', " Then left"]),
        ("a\n\n\nb\n", ["a", "\n\n\nb\n"]),
        ("Dear all  \r\nHello.\r\n\r\nBye", ["Dear all", "  \r\nHello.", "\r\n\r\nBye"]),
        ("", []),
        ("  \n ", ["  \n "]),
    ],
)
def test_sentences_by_example(text: str, units: list[str]) -> None:
    ends = sentences(text)
    assert [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)] == units
