"""``table``: the grammar gives only what the reader accepts; a row's cells come after all of the row before."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import layout
from teaching import Grammar, chances, lengths_of, rows, teach, valid

from pipeline.errors import Reason, Rejected, UserError
from pipeline.layout import Clock, Layout
from pipeline.layout_file import load_layout
from pipeline.plan.edges import streams_for
from pipeline.plan.plan import Segment, check_plan
from pipeline.read.conversation import Part
from pipeline.teach.planners import table
from pipeline.teach.planners.table import segments_of
from pipeline.teach.planners.tables import Table, table_for
from pipeline.teach.prompts import load_prompt

TEN = load_layout("cognition-10")
SEED = [
    Part("system", "Be kind.", 0),
    Part("user", "What is rain?", 1),
    Part("answer", "Water.", 2),
    Part("user", "Why?", 3),
]


def without_ends(made: Layout) -> Layout:
    """The layout whose messages have no end markers; a stream named ``tick`` is a clock."""
    streams = [replace(s, end=False, clock=Clock(4, "#") if s.name == "tick" else None) for s in made.streams]
    return replace(made, streams=tuple(streams))


NAMED = without_ends(
    layout(
        'a "b"\\:input', "tick:input", "Ünder:output", "think:internal",
        roles={"user": 'a "b"\\', "answer": "Ünder", "think": "think"}, silence=" ~",
    )
)  # fmt: skip
DEAF = without_ends(layout("say:output", "think:internal", roles={"answer": "say", "think": "think"}, silence="pad"))
SMALL = Table(("User", "Output", "Doubt"), "-", 0, 1, 5, 8)

ANSWER = """\
User|Output|Analytical|Skeptical|Intuitive|Between|Curious|Void|Instinct|Synthesis
What|-|-|-|-|-|-|-|-|-
is rain|-|a cycle|-|-|-|-|-|-|-
?|-|-|really?|-|-|-|-|-|-
-|-|-|-|-|-|-|-|-|-
-|-|-|-|-|-|-|-|-|-
-|Water|-|-|-|-|-|-|-|-
-|falls|-|-|-|-|-|-|-|done
-|.|-|-|-|-|-|-|-|-
"""


def test_by_example() -> None:
    segments, (call,) = teach("table", TEN, SEED, lambda messages, constraint: ANSWER)
    assert [(s.stream, s.text, [d for d, _ in s.after], s.lag) for s in segments] == [
        ("User", "What", [], 0),
        ("User", " is rain", [0], 0),
        ("Analytical", "a cycle", [0], 0),
        ("User", "?", [1, 2], 0),
        ("Skeptical", "really?", [1, 2], 0),
        ("Output", "Water", [3, 4], 2),
        ("Output", " falls", [5], 0),
        ("Synthesis", "done", [5], 0),
        ("Output", ".", [6, 7], 0),
    ]
    assert all(s.part == -1 for s in segments)
    assert 'user: "What is rain?"' in call.prompt and 'answer: "Water."' in call.prompt


def test_a_topic_is_the_first_thing_that_the_user_says() -> None:
    _, (call,) = teach("table", TEN, SEED, valid(random.Random(0)), seed="topic")
    assert '"What is rain?"' in call.prompt
    assert "Water" not in call.prompt and "kind" not in call.prompt and "Why?" not in call.prompt
    assert table.REPLACES
    _, (call,) = teach("table", TEN, [Part("user", "Rain", 0)], valid(random.Random(0)), seed="topic")
    assert '"Rain"' in call.prompt


def test_the_system_text_names_the_streams_and_the_layouts_silence_and_is_the_same_for_all() -> None:
    _, (call,) = teach("table", TEN, SEED, valid(random.Random(0)))
    _, (other,) = teach("table", TEN, SEED[1:], valid(random.Random(1)))
    assert call.messages[0] == other.messages[0]
    system = call.messages[0].content
    assert "User|Output|Analytical|Skeptical|Intuitive|Between|Curious|Void|Instinct|Synthesis\n" in system
    assert "A silent cell holds -\n" in system
    example = system.partition('17 times 6":\n\n')[2]
    read = Table(("User", "Output", "Doubt"), "-", 0, 1, 32, 20).parse(example)  # what it shows is what it asks for
    assert len(read) == 6


@given(
    chance=chances(),
    limits=st.sampled_from([(2, 2), (3, 20), (12, 5)]),
    name=st.sampled_from(["ten", "named", "deaf"]),
)
@settings(max_examples=60)
def test_whatever_the_grammar_gives_is_read(chance: random.Random, limits: tuple[int, int], name: str) -> None:
    """So a model with random weights always makes a table, and the table always makes a plan that can be scheduled."""
    shown = {"ten": TEN, "named": NAMED, "deaf": DEAF}[name]
    segments, (call,) = teach("table", shown, SEED, valid(chance), rows=limits[0], characters=limits[1])
    assert 2 <= call.answer.count("\n") <= limits[0]
    outputs = {stream.name for stream in shown.streams if stream.kind == "output"}
    assert any(s.stream in outputs for s in segments)
    assert len(call.answer) <= call.max_tokens
    rows(segments, lengths_of(segments, SEED, chance), shown)


def test_clocks_have_no_column_and_silence_is_the_layouts() -> None:
    made = table_for(NAMED, 5, 9)
    assert made.streams == ('a "b"\\', "Ünder", "think") and made.silence == "~" and made.opens == 0
    assert table_for(DEAF, 5, 9).silence == "-"  # "pad" could be the beginning of a word
    assert table_for(DEAF, 5, 9).opens is None
    assert table_for(TEN, 5, 9).silence == "-"


cells = st.one_of(st.none(), st.sampled_from(["a", "word", "two words", ",", "?"]))
tables = st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=8).filter(lambda t: any(any(row) for row in t))


@given(tables, chances())
@settings(max_examples=150)
def test_a_row_comes_after_all_of_the_row_before(made: list[tuple[str | None, ...]], chance: random.Random) -> None:
    """In every schedule: other streams wait for the longest cell; what was silent for n rows is silent for n rows."""
    streams = ("User", "Output", "Void")
    segments = segments_of(streams, made)
    check_plan(segments, SEED, streams_for(TEN), TEN.written())
    placed = rows(segments, lengths_of(segments, SEED, chance), TEN)
    spoken = [[cell for cell in row if cell is not None] for row in made]
    number = 0
    latest, pause = 0, 0
    for row in spoken:
        if not row:
            pause += bool(number)
            continue
        own = placed[number : number + len(row)]
        assert all(start >= latest + pause for start, _ in own)
        assert (
            max(start for start, _ in own) <= latest + pause + 1
        )  # one row later where the horizon asks for it, no more
        latest, pause = max(end for _, end in own), 0
        number += len(row)
    assert number == len(segments)
    for column, stream in enumerate(streams):
        text = "".join(s.text or "" for s in segments if s.stream == stream)
        words = [row[column] for row in made if row[column] is not None]
        assert text == " ".join(word for word in words if word).replace(" ,", ",").replace(" ?", "?")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "line 1 must be the names of the streams: User|Output|Doubt"),
        ("Doubt|Output|User\na|b|c", "line 1 must be"),
        ("User|Output|Doubt", "there are 0 rows below the names; 2 to 5 are allowed"),
        ("User|Output|Doubt\na|b|-", "there are 1 rows"),
        ("User|Output|Doubt\n" + "a|b|-\n" * 6, "there are 6 rows"),
        ("User|Output|Doubt\na|-|-\na|b", "line 3 has 2 cells; line 1 has 3"),
        ("User|Output|Doubt\na|-|-\n|a|b|-|", "line 3 has 5 cells"),
        ("User|Output|Doubt\na|-|-\n\n-|b|-", "line 3 has 1 cells"),
        ("User|Output|Doubt\na||-\n-|b|-", "line 2: the cell of Output is empty; silence is written as -"),
        ("User|Output|Doubt\na|-|-\n-|b|123456789", "line 3: the cell of Doubt has 9 characters; at most 8"),
        ("User|Output|Doubt\na|-|x\ty\n-|b|-", r"line 2: the cell of Doubt holds the character '\t'"),
        ("User|Output|Doubt\na|-|\ud800\n-|b|-", "holds the character"),
        ("User|Output|Doubt\n-|-|a\n-|b|-", "line 2: User is silent, but the first row must open with its words"),
        ("User|Output|Doubt\na|-|-\nb|-|-", "line 3: Output is silent, but the last row must hold its last words"),
        ("Sure!\nUser|Output|Doubt\na|-|-\n-|b|-", "line 1 must be"),
        ("User|Output|Doubt\na|-|-\n-|b|-\n\nDone.", "line 4 has 1 cells"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_precisely(answer: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        SMALL.parse(answer)
    assert said in str(caught.value)


def test_a_table_is_read() -> None:
    assert SMALL.parse("User|Output | Doubt\n a|-| -5\n-|b c|-\n") == [["a", None, "-5"], [None, "b c", None]]
    assert SMALL.parse(SMALL.example) == [["Hi", None, None], [None, "Hi", None]]


def test_the_grammar_for_tests_gives_all_that_it_can() -> None:
    made = {Grammar('root ::= ("a" | b){1,2} [^|b]\nb ::= "|"\n').sample(random.Random(n))[:-1] for n in range(60)}
    assert made == {"a", "|", "aa", "a|", "|a", "||"}


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (
            load_layout("chat-think-3"),
            "layout 'chat-think-3' the streams think, output have end markers, .*use cognition-10",
        ),
        (layout("in:input", "t:internal", roles={"user": "in", "think": "t"}), "no output stream"),
    ],
)
def test_a_layout_that_cannot_hold_a_table_is_refused(shown: Any, message: str) -> None:
    with pytest.raises(UserError, match="planner table: .*" + message):
        table.Planner(shown, table.Options(), load_prompt("table"))


def test_a_stream_name_that_breaks_the_table_is_refused() -> None:
    document = TEN.to_dict()
    document["streams"][9]["name"] = "a|b"
    with pytest.raises(UserError, match=r"the stream name 'a\|b' cannot stand in a table"):
        table.Planner(type(TEN).from_dict(document), table.Options(), load_prompt("table"))


def test_a_plan_replaces_its_conversation_or_covers_it() -> None:
    """Only a plan of generated text alone may leave parts out, or say what the world says."""
    whole = segments_of(("User", "Output"), [("a", None), (None, "b")])
    check_plan(whole, SEED, streams_for(TEN), TEN.written())
    with pytest.raises(Rejected, match="part 1 is not covered"):
        check_plan([Segment("Output", -1, 0, 0, "b"), Segment("User", 0, 0, 8)], SEED, streams_for(TEN), TEN.written())
    with pytest.raises(Rejected, match="generated in stream 'User', which the world writes") as caught:
        check_plan([Segment("User", -1, 0, 0, "a"), Segment("User", 0, 0, 8)], SEED, streams_for(TEN), TEN.written())
    assert caught.value.reason is Reason.PLAN_INVALID
    with pytest.raises(Rejected, match="part 0 is not covered"):
        check_plan([], SEED, streams_for(TEN), TEN.written())
