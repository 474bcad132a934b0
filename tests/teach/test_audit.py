"""``audit``: notes know no more of the solution than what is written; the last word is a verdict; nothing waits for it."""

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
from teaching import MARK, chances, lengths_of, marked, of_marks, rows, said, teach, valid

from pipeline.engines.protocol import Constraint, Message
from pipeline.errors import Reason, Rejected, UserError
from pipeline.layout import Layout
from pipeline.layout_file import load_layout
from pipeline.plan.edges import Edges, spoken_streams
from pipeline.plan.plan import Segment
from pipeline.read.conversation import Part
from pipeline.teach.planners import audit
from pipeline.teach.prompts import load_prompt

SOLVE = load_layout("solve-audit-3")
#: An auditor beside an agent; it may not read the thoughts.
AGENT = layout(
    "system:input", "user:input", "tool:input", "think:internal", "call:output", "out:output", "audit:internal",
    roles={"system": "system", "user": "user", "think": "think", "answer": "out", "call": "call", "result": "tool"},
    visibility={
        "system": [], "user": [], "tool": [], "call": ["system", "user", "tool", "out"],
        "out": ["system", "user", "tool", "call"], "audit": ["system", "user", "tool", "call", "out"],
    },
)  # fmt: skip
#: An auditor who reads the user and the answers, and nothing of what the model does with tools.
NARROW = layout(
    "system:input", "user:input", "tool:input", "think:internal", "call:output", "out:output", "audit:internal",
    roles={"system": "system", "user": "user", "think": "think", "answer": "out", "call": "call", "result": "tool"},
    visibility={
        "system": [], "user": [], "tool": ["user", "out"], "call": ["user", "out"], "out": ["user"],
        "audit": ["user", "out"],
    },
)  # fmt: skip
LAYOUTS = {"agent": AGENT, "narrow": NARROW}

TASK = [
    Part("system", "Solve it.", 0),
    Part("user", "What is 17 times 6? Show steps.", 1),
    Part("answer", "10 times 6 is 60. 7 times 6 is 42. Together 102.", 2),
]


def auditing(
    *notes: Sequence[str], verdict: str = '{"reason":"It adds up.","verdict":"correct"}'
) -> Callable[..., str]:
    left = iter(notes)

    def answer(messages: Sequence[Message], constraint: Constraint) -> str:
        return verdict if "verdict" in constraint.value["properties"] else json.dumps({"notes": next(left)})

    return answer


def test_by_example() -> None:
    segments, calls = teach("audit", SOLVE, TASK, auditing(["60, yes", "go on"], []))
    assert [(s.stream, s.part, s.text, s.after) for s in segments] == [
        ("user", 0, None, ()),
        ("user", 1, None, ((0, None),)),
        ("output", 2, None, ((1, None),)), ("output", 2, None, ()), ("output", 2, None, ()),
        ("audit", -1, "60, yes", ((2, None),)), ("audit", -1, "go on", ((2, None),)),
        ("audit", -1, "Verdict: correct. It adds up.", ((4, None),)),
    ]  # fmt: skip
    assert [call.messages[-1].content for call in calls][:2] == [
        'system: "Solve it."\nuser: "What is 17 times 6? Show steps."\nanswer: "10 times 6 is 60."\n',
        'answer: " 7 times 6 is 42."\n',
    ]
    assert calls[2].messages[-1].content.startswith('answer: " Together 102."\n\nThe solution is complete.')
    for before, after in pairwise(calls):
        assert after.messages[: len(before.messages)] == before.messages
        assert after.messages[len(before.messages)] == Message("assistant", before.answer)


@pytest.mark.parametrize(("character", "share", "escaped"), [("a", 1, False), ("日", 1, False), ("🙂", 1, False),
                                                              ("日", 2 / 3, True), ("🙂", 1 / 3, True)])  # fmt: skip
def test_no_plain_verdict_is_cut(character: str, share: float, escaped: bool) -> None:
    """By bytes, for the worst vocabulary; of escapes, as long as it uses a part of its characters."""
    verdict = {"reason": character * int(160 * share), "verdict": "incorrect"}
    longest = json.dumps(verdict, ensure_ascii=escaped)
    _, calls = teach("audit", SOLVE, TASK, auditing([], [], verdict=longest))
    assert len(longest.encode()) < calls[-1].max_tokens


def test_sentences_in_groups() -> None:
    _, calls = teach("audit", SOLVE, TASK, auditing([]), every=2)
    assert len(calls) == 2
    _, calls = teach("audit", SOLVE, TASK, auditing(), every=9)
    assert len(calls) == 1 and "Together 102" in calls[0].prompt


@given(
    parts=conversations().map(marked),
    layout_name=st.sampled_from(sorted(LAYOUTS)),
    every=st.sampled_from([1, 2]),
    chance=chances(),
)
@settings(max_examples=200)
def test_no_note_knows_what_the_schedule_places_later(
    parts: list[Part], layout_name: str, every: int, chance: random.Random
) -> None:
    """Read from the prompts themselves, for any token counts; and nothing of the conversation is moved or changed.

    Nor does a prompt show, or a note wait for, what the auditor may not read; and every call has something new to show.
    """
    shown = LAYOUTS[layout_name]
    solution = [
        index
        for index, part in enumerate(parts)
        if part.role in ("answer", "call") and shown.sees("audit", shown.roles[part.role])
    ]
    if not solution:
        with pytest.raises(Rejected) as caught:
            teach("audit", shown, parts, valid(chance))
        assert caught.value.reason is Reason.NO_OUTPUT
        return
    segments, calls = teach("audit", shown, parts, valid(chance), every=every)
    for segment in segments:
        if segment.text is not None:
            assert segment.after and all(shown.sees("audit", segments[d].stream) for d, _ in segment.after)
    assert all(MARK.search(call.messages[-1].content) for call in calls[:-1])
    assert said(segments, parts) == [part.text for part in parts]
    number = of_marks(segments, parts)
    lengths = lengths_of(segments, parts, chance)
    placed = rows(segments, lengths, shown)
    generated = iter([i for i, segment in enumerate(segments) if segment.text is not None])
    for call in calls:
        answer = json.loads(call.answer)
        assert ("verdict" in answer) == (call is calls[-1])
        texts = [f"Verdict: {answer['verdict']}. {answer['reason']}"] if call is calls[-1] else answer["notes"]
        for _ in [text for text in texts if "".join(c for c in text if c.isprintable()).strip()]:
            note = next(generated)
            assert segments[note].stream == "audit"
            for mark in MARK.findall(call.prompt):
                read = number[mark]
                assert shown.sees("audit", segments[read].stream)
                assert placed[note][0] >= placed[read][1] + 1
    assert next(generated, None) is None
    assert segments[max(i for i, s in enumerate(segments) if s.text is not None)].text.startswith("Verdict: ")  # type: ignore[union-attr]
    # What was written is read in full before the verdict, and stands where it stands without an auditor.
    answered = {mark for i in solution for mark in MARK.findall(parts[i].text)}
    assert answered <= set(MARK.findall(calls[-1].prompt))
    ends = {
        part: max(end for s, (_, end) in zip(segments, placed, strict=True) if s.part == part)
        for part in range(len(parts))
    }
    whole = default_plan(parts, shown)
    sums = [sum(n for s, n in zip(segments, lengths, strict=True) if s.part == part.part) for part in whole]
    assert [ends[i] for i in range(len(parts))] == [end for _, end in rows(whole, sums, shown)]


def default_plan(parts: Sequence[Part], shown: Layout) -> list[Segment]:
    """One segment per part with default edges."""
    edges = Edges(spoken_streams(shown))
    for index, part in enumerate(parts):
        stream = shown.roles[part.role]
        edges.add(part, index, stream, [len(part.text)], [edges.waits(part, stream)])
    return edges.segments


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ('{"reason":"x"}', "wrong shape: .*verdict"),
        ('{"verdict":"correct"}', "wrong shape: .*reason"),
        ('{"reason":"x","verdict":"maybe"}', "wrong shape: .*maybe"),
        ('{"reason":"x","verdict":"correct","more":1}', "wrong shape: .*more"),
        ('{"reason":"' + "x" * 161 + '","verdict":"correct"}', "161 characters; at most 160"),
        ('{"notes":[]}', "wrong shape"),
        ("correct", "not JSON"),
    ],
)
def test_without_an_explicit_verdict_there_is_no_plan(verdict: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        teach("audit", SOLVE, TASK, auditing([], [], verdict=verdict))


def test_a_verdict_is_one_line() -> None:
    segments, _ = teach(
        "audit", SOLVE, TASK, auditing([], [], verdict='{"verdict":"incorrect","reason":" 7 times 6\\n is 43. "}')
    )
    assert segments[-1].text == "Verdict: incorrect. 7 times 6 is 43."
    segments, _ = teach("audit", SOLVE, TASK, auditing([], [], verdict='{"verdict":"correct","reason":" "}'))
    assert segments[-1].text == "Verdict: correct."


def test_an_empty_solution_is_judged_too() -> None:
    segments, (call,) = teach("audit", SOLVE, [Part("user", "Why?", 0), Part("answer", "", 1)], auditing())
    assert segments[-1].text == "Verdict: correct. It adds up."
    assert "Why?" in call.prompt


def test_what_comes_after_the_solution_is_not_shown() -> None:
    _, calls = teach("audit", SOLVE, [*TASK, Part("user", "It was 102.", 3)], auditing([], []))
    assert "It was 102" not in calls[-1].prompt


def test_calls_that_the_auditor_may_not_read_are_passed_over() -> None:
    """Neither asked about nor waited for; the verdict comes after the last that it may read."""
    parts = [
        Part("user", "Book it.", 0), Part("call", "{}", 1), Part("result", "done", 2, 1), Part("answer", "Done. Bye.", 3),
        Part("call", '{"more":1}', 3), Part("result", "no", 4, 4),
    ]  # fmt: skip
    segments, calls = teach("audit", NARROW, parts, auditing(["fine"]))
    notes = [(s.text, s.after) for s in segments if s.text is not None]
    answer = [number for number, segment in enumerate(segments) if segment.part == 3]
    assert notes == [("fine", ((answer[0], None),)), ("Verdict: correct. It adds up.", ((answer[1], None),))]
    assert [call.messages[-1].content.split("\n\n")[0] for call in calls] == [
        'user: "Book it."\nanswer: "Done."\n', 'answer: " Bye."'
    ]  # fmt: skip


def test_a_solution_of_which_the_auditor_may_read_nothing() -> None:
    parts = [Part("user", "Book it.", 0), Part("call", "{}", 1)]
    with pytest.raises(
        Rejected, match="no answer that could be audited, and stream 'audit' may not read the calls"
    ) as no:
        teach("audit", NARROW, parts, auditing())
    assert no.value.reason is Reason.NO_OUTPUT


@pytest.mark.parametrize(
    ("shown", "options", "message"),
    [
        ("chat-2", {}, "layout 'chat-2' has no internal stream 'audit' .*such as solve-audit-3$"),
        ("chat-think-3", {}, "set stream to one of think"),
        ("chat-think-3", {"stream": "think"}, "'think' is that of think parts; give the auditor a stream of its own"),
        ("solve-audit-3", {"stream": "output"}, "no internal stream 'output'"),
    ],
)
def test_a_layout_without_an_auditors_stream_is_refused(shown: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="planner audit: .*" + message):
        audit.Planner(load_layout(shown), audit.Options(**options), load_prompt("audit"))


def test_an_auditor_who_may_not_read_the_solution_is_refused() -> None:
    blind = layout(
        "user:input", "out:output", "audit:internal", roles={"user": "user", "answer": "out"},
        visibility={"user": [], "audit": ["user"]},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"may not read answer parts \('out'\); let it, under visibility\.audit"):
        audit.Planner(blind, audit.Options(), load_prompt("audit"))
