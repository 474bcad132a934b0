"""``align``: what the teacher says is needed has been read before, nothing else is waited for, and no text is touched."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import conversations, layout
from teaching import MARK, Call, chances, lengths_of, marked, of_marks, rows, said, teach, valid

from pipeline.engines.protocol import Constraint, Message
from pipeline.errors import Reason, Rejected, UserError
from pipeline.grid.tokens import Tokenizer
from pipeline.layout import Layout
from pipeline.layout_file import load_layout
from pipeline.plan.plan import Segment
from pipeline.plan.turns import turn_starts
from pipeline.read.conversation import Part
from pipeline.recipe import load_recipe
from pipeline.teach.causal import Order
from pipeline.teach.planners import TEACHERS, align
from pipeline.teach.planners.aligning import answer_schema
from pipeline.teach.prompts import Prompt, load_prompt

AGENT = load_layout("agent")
CHAT = load_layout("chat-think-3")
BLINKERED = layout(
    "system:input", "user:input", "tool:input", "think:internal", "out:output",
    roles={"system": "system", "user": "user", "think": "think", "answer": "out", "call": "out", "result": "tool"},
    visibility={"system": [], "user": [], "think": ["user"], "out": ["user", "tool"], "tool": []},
)  # fmt: skip
SHARED = layout(
    "in:input", "out:output",
    roles={"system": "in", "user": "in", "think": "out", "answer": "out", "call": "out", "result": "in"},
)  # fmt: skip
LAYOUTS = {"agent": AGENT, "blinkered": BLINKERED, "shared": SHARED}


def given_answers(*answers: Sequence[int]) -> Callable[[Sequence[Message], Constraint], str]:
    """One answer per call."""
    left = iter(answers)
    return lambda messages, constraint: json.dumps({str(i): n for i, n in enumerate(next(left), 1)})


def sections(call: Call) -> tuple[list[str], list[str]]:
    """The marks of the numbered input segments of a prompt's last turn, and of the output segments of its last list."""
    turn = call.prompt.split("Input segments:\n")[-1]
    inputs, outputs = turn.split("Output segments:\n")
    outputs = outputs.split("Further output segments:\n")[-1]
    return [MARK.findall(line)[-1] for line in inputs.splitlines() if line], [
        MARK.findall(line)[0] for line in outputs.splitlines() if re.match(r"\d", line)
    ]


TALK = [
    Part("system", "Be brief.", 0),
    Part("user", "I have 3. She has 4. How many?", 1),
    Part("think", "I: 3. Both: 7.", 2),
    Part("answer", "Sure. We have 7.", 2),
    Part("user", "Thanks! Bye?", 3),
    Part("answer", "Bye. Bye.", 4),
]


def test_by_example() -> None:
    """One call per turn; edges only where something new has to be read."""
    segments, calls = teach("align", CHAT, TALK, given_answers([2, 3, 0, 4], [1, 0]))
    assert len(calls) == 2
    after = [segment.after for segment in segments]
    assert [(segment.stream, segment.part) for segment in segments] == [
        ("user", 0), ("user", 1), ("user", 1), ("user", 1), ("think", 2), ("think", 2), ("output", 3), ("output", 3),
        ("user", 4), ("user", 4), ("output", 5), ("output", 5),
    ]  # fmt: skip
    assert after[:4] == [(), ((0, None),), (), ()]
    assert after[4:6] == [((1, None),), ((2, None),)]  # each thought after the sentence that it needs
    assert after[6:8] == [((5, None),), ((3, None),)]  # the answer after the thought, then after the question
    assert after[8] == ((0, None), (7, None))  # the user after what was said to them
    assert set(after[10]) == {(8, None), (5, None)}
    assert after[11] == ()  # the order in the stream says the rest


def test_needing_nothing_is_still_part_of_the_turn() -> None:
    """0 waits for no input of the turn; but a turn begins when the one before is over, its input included."""
    segments, _ = teach("align", CHAT, TALK, given_answers([0, 0, 0, 0], [0, 0]))
    assert [segment.after for segment in segments[4:8]] == [(), (), ((5, None),), ()]
    assert {(3, None), (7, None)} <= set(segments[10].after)
    assert not {d for d, _ in segments[10].after} & {8, 9}


def asked_about(parts: Sequence[Part], shown: Layout) -> list[list[str]]:
    """For every turn that has input, the marks of the sentences that align is defined to ask about."""
    starts = turn_starts(parts)
    asked = []
    for first, end in zip(starts, [*starts[1:], len(parts)], strict=True):
        rest = first
        while rest < end and parts[rest].role in ("system", "user"):
            rest += 1
        marks: list[str] = []
        for part in parts[rest:end]:
            if part.role == "result":
                break
            if part.role in ("think", "answer"):
                marks += MARK.findall(part.text)
        if any(part.text for part in parts[first:rest]) and marks:
            asked.append(marks)
    return asked


@given(
    parts=conversations().map(marked),
    layout_name=st.sampled_from(sorted(LAYOUTS)),
    most=st.sampled_from([1, 2, 64]),
    chance=chances(),
)
@settings(max_examples=120)
def test_what_is_needed_has_been_read_in_every_schedule(
    parts: list[Part], layout_name: str, most: int, chance: random.Random
) -> None:
    """Any valid answer, any conversation, any token counts: an output sentence starts beyond the horizon of all that it
    needs and may read."""
    shown = LAYOUTS[layout_name]
    segments, calls = teach("align", shown, parts, valid(chance), max_segments=most)
    assert said(segments, parts) == [part.text for part in parts]
    assert not any(segment.text for segment in segments)
    placed = rows(segments, lengths_of(segments, parts, chance), shown)
    number = of_marks(segments, parts)
    asked: list[str] = []
    for call in calls:
        inputs, outputs = sections(call)
        needs = list(json.loads(call.answer).values())
        assert len(needs) == len(outputs) <= most
        asked += outputs
        for mark, need in zip(outputs, needs, strict=True):
            segment = number[mark]
            for read in [number[each] for each in inputs[:need]]:
                if shown.sees(segments[segment].stream, segments[read].stream):
                    assert placed[segment][0] >= placed[read][1] + 1
    assert asked == [mark for turn in asked_about(parts, shown) for mark in turn]


@given(parts=conversations().map(marked), chance=chances())
@settings(max_examples=60)
def test_everything_else_keeps_the_default_edges(parts: list[Part], chance: random.Random) -> None:
    """Calls and what follows a result come after all input and the thought before them; a user after what was said."""
    segments, _ = teach("align", AGENT, parts, valid(chance))
    order, number = Order(segments), of_marks(segments, parts)
    asked = {mark for turn in asked_about(parts, AGENT) for mark in turn}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for place, segment in enumerate(segments):
        first.setdefault(segment.part, place)
        last[segment.part] = place
    for index, part in enumerate(parts):
        begins = order_before(order, segments, first[index])
        earlier = [i for i in range(index) if parts[i].text]
        if part.role in ("user", "system"):
            other = "system" if part.role == "user" else "user"
            wanted = [i for i in earlier if parts[i].role in (other, "call", "answer")]
        elif part.role == "result":
            wanted = [part.reply_to]
        elif not part.text or MARK.findall(part.text)[0] in asked:
            wanted = [i for i in earlier if parts[i].role == "think" and part.role != "think"][-1:]
        else:
            wanted = [i for i in earlier if parts[i].role in ("system", "user", "result")]
            wanted += [i for i in earlier if parts[i].role == "think" and part.role != "think"]
        for i in wanted:
            assert last[i] <= begins.get(segments[last[i]].stream, -1), (index, i)
    assert len(number) == sum(len(MARK.findall(part.text)) for part in parts)


def order_before(order: Order, segments: Sequence[Segment], number: int) -> dict[str, int]:
    """What has ended before one segment of a finished plan begins."""
    order.ended("user", ())
    return order._begins[number]


def test_hidden_input_is_no_evidence() -> None:
    parts = [Part("system", "One.", 0), Part("user", "Two.", 1), Part("think", "A.", 2), Part("answer", "B.", 2)]
    segments, _ = teach("align", BLINKERED, parts, given_answers([1, 2]))
    # The thought needs the system text, which its stream may not read: it waits for nothing of the turn.
    assert segments[2].after == ()
    assert set(segments[3].after) == {(1, None), (2, None)}


def test_all_input_streams_up_to_the_needed_sentence() -> None:
    parts = [Part("system", "One. Two.", 0), Part("user", "Three. Four.", 1), Part("answer", "Aa. Bb. Cc.", 2)]
    segments, _ = teach("align", AGENT, parts, given_answers([2, 3, 4]))
    assert [segment.after for segment in segments[4:]] == [((1, None),), ((2, None),), ((3, None),)]
    segments, _ = teach("align", AGENT, parts, given_answers([3, 1, 4]))
    assert [segment.after for segment in segments[4:]] == [((1, None), (2, None)), (), ((3, None),)]


def test_results_are_read_in_full_and_calls_are_shown() -> None:
    parts = [
        Part("user", "m0x0z. m0x1z.", 0), Part("answer", "m1x0z.", 1), Part("call", "m2x0z.", 1), Part("think", "m3x0z.", 1),
        Part("result", "m4x0z.", 2, 2), Part("answer", "m5x0z. m5x1z.", 3),
    ]  # fmt: skip
    segments, (call,) = teach("align", AGENT, parts, given_answers([1, 1]))
    assert "- call: " in call.prompt and not {"m4x0z", "m5x0z"} & set(MARK.findall(call.prompt))
    assert segments[3].after == ((1, None),)  # the call waits for all of the question
    assert segments[-1].part == 5 and segments[-1].begin == 0 and (5, None) in segments[-1].after


def test_a_long_turn_takes_several_calls_and_loses_nothing() -> None:
    sentences_said = [f"Sentence {n}z." for n in range(150)]
    parts = [Part("user", "Why? Now?", 0), Part("answer", " ".join(sentences_said), 1)]
    _, calls = teach("align", CHAT, parts, valid(random.Random(1)), max_segments=64)
    assert [len(json.loads(call.answer)) for call in calls] == [64, 64, 22]
    numbered = [line for line in calls[-1].prompt.splitlines() if re.match(r"\d+ answer: ", line)]
    assert [line.partition("answer: ")[2] for line in numbered] == [
        json.dumps(("" if n == 0 else " ") + text) for n, text in enumerate(sentences_said)
    ]
    assert [int(line.split()[0]) for line in numbered] == [*range(1, 65), *range(1, 65), *range(1, 23)]
    assert [f"Sentence {n}z" in call.prompt for call in calls for n in (63, 64, 127, 128)] == [
        True, False, False, False, True, True, True, False, True, True, True, True,
    ]  # fmt: skip


def question(call: Call) -> str:
    """What a prompt ends with."""
    return "\n\n" + call.prompt.rpartition("\n\n")[2]


@given(
    parts=conversations().map(marked),
    layout_name=st.sampled_from(sorted(LAYOUTS)),
    most=st.sampled_from([1, 2, 64]),
    planner=st.sampled_from(["align", "blind"]),
    chance=chances(),
)
@settings(max_examples=100)
def test_a_call_begins_with_all_that_the_one_before_has_shown(
    parts: list[Part], layout_name: str, most: int, planner: str, chance: random.Random
) -> None:
    """Byte for byte, but for the question at the end, and whatever was answered; no text is shown twice."""
    options = {"answer": "align"} if planner == "blind" else {}
    if planner == "blind" and layout_name == "shared":
        return  # it has no stream for thoughts
    _, made = teach(planner, LAYOUTS[layout_name], parts, valid(chance), max_segments=most, **options)
    calls = [call for call in made if call.messages[0].content.startswith("You judge how early")]
    assert all(len(call.messages) == 2 for call in calls)
    for before, call in pairwise(calls):
        assert call.messages[0] == before.messages[0]
        assert call.prompt.startswith(before.prompt.removesuffix(question(before)) + "\n\n")
    for call in calls:
        assert len(question(call)) < 150
        shown = MARK.findall(call.prompt)
        assert len(set(shown)) == len(shown)
    if calls:  # and nothing that came before is left out
        last = MARK.findall(calls[-1].prompt)
        marks = MARK.findall(" ".join(part.text for part in parts))
        assert last == marks[: len(last)]


def test_a_call_does_not_depend_on_earlier_answers() -> None:
    prompts = [
        [call.messages for call in teach("align", CHAT, TALK, given_answers(answer, [0, 0]))[1]]
        for answer in ([0, 0, 0, 0], [2, 3, 0, 4])
    ]
    assert prompts[0] == prompts[1]


def test_a_long_input_shares_numbers_and_loses_nothing() -> None:
    parts = [
        Part("system", "Rule. " * 3, 0), Part("user", " ".join(f"m1x{n}z." for n in range(500)), 1), Part("answer", "Aa. Bb.", 2)
    ]  # fmt: skip
    _, (call,) = teach("align", AGENT, parts, given_answers([80, 2]))
    assert MARK.findall(call.prompt) == [f"m1x{n}z" for n in range(500)]
    numbers = re.findall(r"^(\d+) (?:user|system):", call.prompt.split("Output")[0], re.M)
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)] and 80 <= len(numbers) <= 99
    assert f"(1 to {len(numbers)})" in call.prompt


def test_a_shared_number_means_the_last_of_its_sentences() -> None:
    parts = [Part("user", " ".join(f"m0x{n}z." for n in range(10)), 0), Part("answer", "Aa. Bb. Cc.", 1)]
    segments, _ = teach("align", CHAT, parts, given_answers([1, 3, 4]), max_inputs=4)
    assert [segment.after for segment in segments[10:]] == [((2, None),), ((8, None),), ((9, None),)]


@pytest.mark.parametrize(
    ("outputs", "inputs"), [(1, 0), (1, 1), (1, 99), (3, 9), (9, 99), (10, 99), (64, 99), (99, 99)]
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_an_answer_costs_at_most_eight_tokens_per_output_segment(
    tokenizer: Tokenizer, outputs: int, inputs: int, separators: tuple[str, str]
) -> None:
    """In the longest answer there is, also where digits are written one by one (as the built-in vocabulary does)."""
    longest = json.dumps({str(n): inputs for n in range(1, outputs + 1)}, separators=separators)
    assert len(tokenizer.encode(["1234"])[0]) == 4 or tokenizer.name != "builtin"
    tokens = len(tokenizer.encode([longest])[0])
    assert tokens <= 8 * outputs + 2  # two for the braces
    parts = [Part("user", " ".join(["Go."] * max(inputs, 1)), 0), Part("answer", " ".join(["Yes."] * outputs), 1)]
    if inputs:
        _, (call,) = teach("align", CHAT, parts, given_answers([inputs] * outputs), max_segments=99)
        assert tokens < call.max_tokens
        assert len(longest) < call.max_tokens  # whatever the vocabulary


def test_every_character_a_token_is_at_most_eight_per_output_segment() -> None:
    """The worst vocabulary there can be, the largest options there are, the braces included."""
    for planner in ("align", "blind"):
        fields = TEACHERS[planner].Options.__struct_fields__
        most = {name: largest(planner, name) for name in ("max_segments", "max_inputs") if name in fields}
        assert most == {"max_segments": 99, "max_inputs": 99}
        for outputs in range(1, most["max_segments"] + 1):
            longest = dict.fromkeys(map(str, range(1, outputs + 1)), most["max_inputs"])
            assert len(json.dumps(longest, separators=(",", ":"))) <= 8 * outputs


def largest(planner: str, option: str) -> int:
    """The largest value of an option that a recipe may have."""
    accepted = 0
    for value in (1, 9, 10, 99, 100, 999, 1000):
        try:
            load_recipe(planner, [f"{option}={value}"])
        except UserError as error:
            assert option in str(error) and "99" in str(error)
            break
        accepted = value
    return accepted


_ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("123"), inner, max_size=3),
    max_leaves=4,
)


@given(
    outputs=st.integers(1, 3),
    inputs=st.integers(1, 4),
    answer=st.dictionaries(st.sampled_from(["1", "2", "3", "4", "01", "a"]), st.integers(-1, 5), max_size=4)
    | _ANY_JSON,
    fitting=st.booleans(),
)
@settings(max_examples=150)
def test_the_schema_and_the_reader_accept_the_same(outputs: int, inputs: int, answer: Any, fitting: bool) -> None:
    if fitting and isinstance(answer, dict):
        answer = {str(n): answer.get(str(n), 0) for n in range(1, outputs + 1)}
    parts = [Part("user", " ".join(["Go."] * inputs), 0), Part("answer", " ".join(["Yes."] * outputs), 1)]
    accepted = jsonschema_rs.is_valid(answer_schema(outputs, inputs), answer)
    try:
        teach("align", CHAT, parts, lambda messages, constraint: json.dumps(answer))
    except ValueError:
        assert not accepted
    else:
        assert accepted


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "not JSON"),
        ("{}", 'the key "1" is missing; the keys are "1" to "2"'),
        ('{"1":1,"2":3}', '"2" is 3, but there are input segments 1 to 2, and 0 for none'),
        ('{"1":1,"2":-1}', '"2" is -1'),
        ('{"1":1,"2":2,"3":0}', 'there is no output segment "3"'),
        ('{"1":1,"2":"2"}', "wrong shape"),
        ('{"1":1,"2":true}', "wrong shape"),
        ('{"1":1,"2":2.0}', "wrong shape"),
        ('{"1":1,"2":NaN}', "wrong shape"),
        ("[1,2]", "wrong shape"),
        ('{"1":1,"2":2}}', "not JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"\\ud800":1}', "half a character"),
        ('{"1":' + "9" * 5000 + ',"2":0}', "not JSON"),
    ],
)
def test_a_wrong_answer_is_refused_in_words_for_the_model(answer: str, said: str) -> None:
    parts = [Part("user", "One. Two.", 0), Part("answer", "Aa. Bb.", 1)]
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        teach("align", CHAT, parts, lambda messages, constraint: answer)
    assert len(str(caught.value)) < 300


def test_the_system_text_is_the_same_for_all_and_earlier_turns_come_first() -> None:
    _, (first, second) = teach("align", CHAT, TALK, valid(random.Random(0)))
    _, (other, *_) = teach("align", AGENT, marked(TALK), valid(random.Random(0)))
    assert first.messages[0] == second.messages[0] == other.messages[0]
    assert second.prompt.index("How many?") < second.prompt.rindex("Input segments:") < second.prompt.index("Thanks!")


def test_nothing_to_align_asks_nothing() -> None:
    for parts in (
        [Part("answer", "Hello. I am here.", 0)],
        [Part("user", "", 0), Part("answer", "What?", 1)],
        [Part("user", "Hi.", 0), Part("answer", "", 1)],
        [Part("user", "Hi.", 0)],
    ):
        _, calls = teach("align", CHAT, parts, valid(random.Random(0)))
        assert calls == []


def test_a_rejection_goes_through() -> None:
    async def ask(*_: Any, **__: Any) -> Any:
        raise Rejected(Reason.TEACHER_REFUSED, "too long")

    planner = align.Planner(CHAT, align.Options(), load_prompt("align"))
    with pytest.raises(Rejected, match="too long"):
        asyncio.run(planner(TALK, ask))


@pytest.mark.parametrize(
    "roles",
    [
        {"user": "user", "answer": "out"},
        {"user": "user", "answer": "out", "think": "think"},
        {"user": "drop", "answer": "out"},
    ],
)
def test_a_layout_in_which_nothing_can_be_aligned_is_refused(roles: dict[str, str]) -> None:
    deaf = layout(
        "user:input", "think:internal", "out:output", roles=roles, visibility={"think": ["out"], "out": ["think"]}
    )
    with pytest.raises(UserError, match=r"planner align: .*layout 'test'.*such as chat-think-3"):
        align.Planner(deaf, align.Options(), load_prompt("align"))


BARE = Prompt("mine", {"system.jinja": "Align.", "retry.jinja": ""})


def test_prompt_lacking_a_template_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match=r"turn\.jinja"):
        align.Planner(CHAT, align.Options(), BARE)
