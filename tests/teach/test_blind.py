"""``blind``: no thought knows more than what had been read, in any schedule; the recorded text stays as it was."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import conversations, layout
from teaching import MARK, Call, chances, lengths_of, marked, of_marks, rows, said, teach, valid

from pipeline.engines.protocol import Constraint, Message
from pipeline.errors import UserError
from pipeline.grid.tokens import Tokenizer
from pipeline.layout import Layout
from pipeline.layout_file import load_layout
from pipeline.plan.plan import Segment
from pipeline.plan.turns import turn_starts
from pipeline.read.conversation import Part
from pipeline.teach.planners import blind
from pipeline.teach.prompts import load_prompt

AGENT = load_layout("agent")
CHAT = load_layout("chat-think-3")
#: Thoughts may read the user and the tools, not what is said or called.
BLINKERED = layout(
    "system:input", "user:input", "tool:input", "think:internal", "out:output",
    roles={"system": "system", "user": "user", "think": "think", "answer": "out", "call": "out", "result": "tool"},
    visibility={"system": [], "user": [], "tool": [], "think": ["user", "tool"]},
)  # fmt: skip
LAYOUTS = {"agent": AGENT, "blinkered": BLINKERED}

TALK = [
    Part("system", "Be brief.", 0),
    Part("user", "I have 3. She has 4. How many?", 1),
    Part("think", "Seven.", 2),
    Part("answer", "Sure. We have 7.", 2),
    Part("user", "Thanks!", 3),
    Part("answer", "Bye. Bye.", 4),
]


def thinking(*answers: Sequence[str], needs: Sequence[int] = ()) -> Callable[[Sequence[Message], Constraint], str]:
    """One list of thoughts per call; ``needs`` where align asks."""
    left = iter(answers)

    def answer(messages: Sequence[Message], constraint: Constraint) -> str:
        if "thoughts" in constraint.value["properties"]:
            return json.dumps({"thoughts": next(left)})
        return json.dumps({key: needs[int(key) - 1] for key in constraint.value["properties"]})

    return answer


def about_thoughts(calls: Sequence[Call]) -> list[Call]:
    return [call for call in calls if "thoughts" in call.constraint.value["properties"]]


def test_by_example() -> None:
    """A call per sentence of the user; thoughts after it; recorded thoughts next; the answer after all of them."""
    answer = thinking(["a", "b"], [], ["c"], ["d"])
    segments, calls = teach("blind", CHAT, TALK, answer)
    assert [(s.stream, s.part, s.text, s.after) for s in segments] == [
        ("user", 0, None, ()),
        ("user", 1, None, ((0, None),)), ("user", 1, None, ()), ("user", 1, None, ()),
        ("think", -1, "a", ((1, None),)), ("think", -1, "b", ((1, None),)), ("think", -1, "c", ((3, None),)),
        ("think", 2, None, ((3, None),)),
        ("output", 3, None, ((7, None),)),
        ("user", 4, None, ((0, None), (8, None))),
        ("think", -1, "d", ((9, None),)),
        ("output", 5, None, ((10, None), (9, None))),
    ]  # fmt: skip
    assert [call.messages[-1].content for call in calls] == [
        'system: "Be brief."\nuser: "I have 3."\n',
        'user: " She has 4."\n',
        'user: " How many?"\n',
        'think: "Seven."\nanswer: "Sure. We have 7."\nuser: "Thanks!"\n',
    ]


def test_every_call_extends_the_one_before() -> None:
    """So a prefix cache serves everything but the news."""
    _, calls = teach("blind", CHAT, TALK, thinking(["a", "b"], [], ["c"], ["d"]))
    for before, after in pairwise(calls):
        grown = len(before.messages)
        assert after.messages[:grown] == before.messages
        assert after.messages[grown] == Message("assistant", before.answer)
        assert len(after.messages) == grown + 2
    _, others = teach("blind", AGENT, marked(TALK), valid(random.Random(0)))
    assert others[0].messages[0] == calls[0].messages[0]


def test_sentences_in_groups() -> None:
    parts = [Part("user", "One. Two. Three. Four. Five.", 0), Part("answer", "Yes.", 1)]
    segments, calls = teach("blind", CHAT, parts, thinking(["a"], ["b"], ["c"]), every=2)
    assert [s.after for s in segments if s.text] == [((1, None),), ((3, None),), ((4, None),)]
    assert len(calls) == 3


def test_the_answer_by_align_waits_for_what_it_needs_and_what_was_thought_of_it() -> None:
    parts = [Part("user", "One. Two. Three.", 0), Part("answer", "Aa. Bb. Cc.", 1)]
    answer = thinking(["a"], ["b"], ["c"], needs=[1, 1, 2])
    segments, calls = teach("blind", CHAT, parts, answer, answer="align")
    assert [s.text for s in segments[3:6]] == ["a", "b", "c"]
    assert [s.after for s in segments[6:]] == [((0, None), (3, None)), (), ((1, None), (4, None))]
    assert len(calls) == 4
    segments, _ = teach("blind", CHAT, parts, thinking(["a"], ["b"], ["c"], needs=[0, 0, 3]), answer="align")
    assert [s.after for s in segments[6:]] == [(), (), ((2, None), (5, None))]


def expected_calls(parts: Sequence[Part], shown: Layout) -> list[str]:
    """The mark that each call's news must end with: every sentence of the users, results, instructions without a user."""
    marks: list[str] = []
    starts = turn_starts(parts)
    for first, end in zip(starts, [*starts[1:], len(parts)], strict=True):
        about = "user" if any(part.role == "user" for part in parts[first:end]) else "system"
        leading = True
        for part in parts[first:end]:
            leading = leading and part.role in ("system", "user")
            if not shown.sees("think", shown.lanes(shown.roles[part.role])[0]):
                continue
            if leading and part.role == about:
                marks += MARK.findall(part.text)
            elif part.role == "result":
                marks += MARK.findall(part.text)[-1:]
    return marks


@given(
    parts=conversations().map(marked),
    layout_name=st.sampled_from(sorted(LAYOUTS)),
    answer=st.sampled_from(["rule", "align"]),
    chance=chances(),
)
@settings(max_examples=120)
def test_no_thought_knows_what_the_schedule_places_later(
    parts: list[Part], layout_name: str, answer: str, chance: random.Random
) -> None:
    """Read from the prompts themselves: every sentence in them has been said, one horizon before, when the thought begins,
    whatever the token counts; and stands in a stream that thoughts may read."""
    shown = LAYOUTS[layout_name]
    segments, calls = teach("blind", shown, parts, valid(chance), answer=answer)
    assert said(segments, parts) == [part.text for part in parts]
    number = of_marks(segments, parts)
    placed = rows(segments, lengths_of(segments, parts, chance), shown)
    generated = iter([i for i, segment in enumerate(segments) if segment.text is not None])
    calls = about_thoughts(calls)
    assert [MARK.findall(call.messages[-1].content)[-1] for call in calls] == expected_calls(parts, shown)
    for call in calls:
        thoughts = [" ".join(text.split()) for text in json.loads(call.answer)["thoughts"]]
        for _ in [text for text in thoughts if "".join(c for c in text if c.isprintable()).strip()]:
            thought = next(generated)
            assert segments[thought].stream == "think"
            for mark in MARK.findall(call.prompt):
                read = number[mark]
                assert shown.sees("think", segments[read].stream)
                horizon = segments[read].stream != "think"
                assert placed[thought][0] >= placed[read][1] + horizon
    assert next(generated, None) is None


@given(parts=conversations().map(marked), chance=chances())
@settings(max_examples=50)
def test_by_rule_the_model_speaks_after_all_input_and_thoughts(parts: list[Part], chance: random.Random) -> None:
    segments, _ = teach("blind", AGENT, parts, valid(chance))
    placed = rows(segments, lengths_of(segments, parts, chance), AGENT)
    for number, segment in enumerate(segments):
        if segment.part < 0 or parts[segment.part].role not in ("answer", "call"):
            continue
        earlier = [
            i for i in range(number)
            if segments[i].part < 0 or (segments[i].part < segment.part and parts[segments[i].part].role not in ("answer", "call"))
        ]  # fmt: skip
        assert all(placed[number][0] >= placed[i][1] + 1 for i in earlier if segments[i].stream != segment.stream)


@given(parts=conversations().map(marked), chance=chances())
@settings(max_examples=30)
def test_passing_every_time_leaves_the_default_plan(parts: list[Part], chance: random.Random) -> None:
    """Without thoughts the plan has only recorded text, and input and answers overlap nowhere."""
    segments, _ = teach("blind", AGENT, parts, lambda messages, constraint: '{"thoughts":[]}')
    assert all(segment.text is None for segment in segments)


def test_recorded_thoughts_keep_place_and_order() -> None:
    parts = [
        Part("user", "One.", 0), Part("think", "First.", 1), Part("answer", "Aa.", 1), Part("think", "Second.", 1),
        Part("answer", "Bb.", 1), Part("user", "Two.", 2), Part("think", "Third.", 3), Part("answer", "Cc.", 3),
    ]  # fmt: skip
    segments, _ = teach("blind", CHAT, parts, thinking(["a"], ["b"]))
    stream = [s.text or parts[s.part].text for s in segments if s.stream == "think"]
    assert stream == ["a", "First.", "Second.", "b", "Third."]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"thoughts":["a","b","c","d"]}', "4 thoughts, but at most 3"),
        ('{"thoughts":["' + "a" * 161 + '"]}', "161 characters; at most 160"),
        ('{"thoughts":"a"}', "wrong shape"),
        ('{"thoughts":[1]}', "wrong shape"),
        ('{"notes":[]}', 'the one key "thoughts"'),
        ('{"thoughts":[],"more":[]}', 'the one key "thoughts"'),
        ("{}", 'the one key "thoughts"'),
        ("I think", "not JSON"),
        ('{"thoughts":["\\udc00"]}', "half a character"),
    ],
)
def test_a_wrong_answer_is_refused_in_words_for_the_model(answer: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        teach("blind", CHAT, TALK, lambda messages, constraint: answer)


@pytest.mark.parametrize(
    "character", ["a", "7", "ß", "Я", "日", "가", "\ua9c0", "'", '"', "\\", "\n", " ", "🙂", "\U0010ffff"]
)
def test_no_plain_answer_is_cut(tokenizer: Tokenizer, character: str) -> None:
    """The longest thoughts there may be, in any script: by bytes, for the worst vocabulary, and in a real one."""
    longest = json.dumps({"thoughts": [character * 160] * 3}, ensure_ascii=False)
    _, calls = teach("blind", CHAT, TALK, lambda messages, constraint: longest)
    assert len(longest.encode()) < calls[0].max_tokens
    assert len(tokenizer.encode([longest])[0]) < calls[0].max_tokens


@pytest.mark.parametrize(("character", "share"), [("é", 2 / 3), ("日", 2 / 3), ("\x01", 2 / 3), ("🙂", 1 / 3)])
def test_nor_is_one_of_escapes_that_uses_a_part_of_its_characters(character: str, share: float) -> None:
    """Where ``\\u65e5`` is six tokens, or a pair of them twelve; beyond that such an answer may be cut, as said there."""
    longest = json.dumps({"thoughts": [character * int(160 * share)] * 3})
    assert "\\u" in longest
    _, calls = teach("blind", CHAT, TALK, lambda messages, constraint: longest)
    assert len(longest) < calls[0].max_tokens
    assert len(json.dumps({"thoughts": [character * 160] * 3})) > calls[0].max_tokens


def test_a_thought_is_one_line_and_a_blank_one_is_none() -> None:
    segments, _ = teach("blind", CHAT, TALK, thinking(["  a\n\tb\x00 ", " \n", "\u200b"], [], [], []))
    assert [s.text for s in segments if s.text is not None] == ["a b"]


@pytest.mark.parametrize(
    ("shown", "options", "message"),
    [
        ("chat-2", {}, r"layout 'chat-2' has no stream for thoughts .*chat-think-3"),
        ("solve-audit-3", {}, r"no stream for thoughts .*set stream to one of audit"),
        ("chat-think-3", {"stream": "output"}, "recorded thoughts stand in 'think'"),
        ("solve-audit-3", {"stream": "output"}, "'output' is not an internal stream .*internal are audit"),
        ("chat-2", {"stream": "think"}, "'think' is not an internal stream .*internal are none"),
    ],
)
def test_a_layout_without_a_stream_for_thoughts_is_refused(shown: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="planner blind: .*" + message):
        blind.Planner(load_layout(shown), blind.Options(**options), load_prompt("blind"))


def test_thoughts_that_may_not_read_the_user_are_refused() -> None:
    deaf = layout(
        "user:input", "think:internal", "out:output", roles={"user": "user", "think": "think", "answer": "out"},
        visibility={"think": ["out"], "out": []},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"'think', may not read what the user says .*visibility\.think"):
        blind.Planner(deaf, blind.Options(), load_prompt("blind"))
    deaf_answers = layout(
        "user:input", "think:internal", "out:output", roles={"user": "user", "think": "think", "answer": "out"},
        visibility={"out": []},
    )  # fmt: skip
    blind.Planner(deaf_answers, blind.Options(), load_prompt("blind"))
    with pytest.raises(UserError, match="set answer=rule"):
        blind.Planner(deaf_answers, blind.Options(answer="align"), load_prompt("blind"))


def test_where_recorded_thoughts_are_dropped_another_stream_can_hold_new_ones() -> None:
    parts = [part for part in TALK if part.role != "think"]
    segments, _ = teach("blind", load_layout("solve-audit-3"), parts, thinking(["a"], [], [], []), stream="audit")
    assert [(s.stream, s.text) for s in segments if s.text] == [("audit", "a")]


def test_a_thought_that_did_not_hear_all_of_the_input_does_not_stand_for_it() -> None:
    """The answer waits for the last thought, and for the input after it."""
    parts = [Part("user", "One. Two.", 0), Part("answer", "Aa.", 1)]
    segments, _ = teach("blind", CHAT, parts, thinking(["a"], []))
    assert segments[-1] == Segment("output", 1, 0, 3, None, ((2, None), (1, None)))
