"""One shard, start to end: every record ends in one place, every text comes back, no record costs its neighbours."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import builtin, chat, convert_lines, message, neox, raw, texts

from pipeline.convert import ShardConverter, ShardFiles
from pipeline.errors import Reason
from pipeline.grid.ids import token_ids
from pipeline.grid.tokens import Tokenizer
from pipeline.plan.plan import Plan, Plans
from pipeline.read.cut import cut_all, records
from pipeline.read.inputs import resolve_inputs
from pipeline.read.scan import scan
from pipeline.recipe import Recipe, load_recipe
from pipeline.store.plans import plans_or_faults, unpack

GOOD = [raw(chat(f"Question {i}? Really?", f"Answer {i}. Yes!")) for i in range(3)]
LONG = raw(chat("word " * 100, "word " * 100))
CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": "{}"}}
TOOLS = raw(
    {
        "messages": [
            message("user", "Go"),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            message("tool", "1", tool_call_id="c1"),
            message("assistant", "Done."),
        ]
    }
)


def forgetful() -> Tokenizer:
    """A tokenizer that loses every XYZZY."""
    document = json.loads(builtin().json)
    lose = {"type": "Split", "pattern": {"String": "XYZZY"}, "behavior": "Removed", "invert": False}
    document["pre_tokenizer"]["pretokenizers"].insert(0, lose)
    return Tokenizer("forgetful", "0" * 64, json.dumps(document))


class Case(NamedTuple):
    """A record that is rejected, and what it takes."""

    line: bytes
    settings: tuple[str, ...] = ()
    tokenizer: Callable[[], Tokenizer] = builtin
    planned: bool = False


CASES: dict[Reason, Case] = {
    Reason.CORRUPT_FILE: Case(b""),
    Reason.TOO_LARGE: Case(raw(chat("x" * 500, "y")), ("read.max_record_bytes=400",)),
    Reason.INVALID_JSON: Case(b'{"messages": [{"role": "user", "content": "no end'),
    Reason.INVALID_UNICODE: Case(rb'{"messages": [{"role": "user", "content": "\ud800"}]}'),
    Reason.TOO_DEEP: Case(b"[" * 1000 + b"]" * 1000),
    Reason.UNKNOWN_FORMAT: Case(b"42"),
    Reason.NO_MESSAGES: Case(raw({"messages": []})),
    Reason.UNKNOWN_ROLE: Case(raw({"messages": [message("narrator", "Once"), message("assistant", "upon")]})),
    Reason.UNSUPPORTED_CONTENT: Case(
        raw({"messages": [message("user", [{"type": "image_url"}]), message("assistant", "A cat.")]})  # type: ignore[arg-type]
    ),
    Reason.RESULT_WITHOUT_CALL: Case(raw({"messages": [message("tool", "1"), message("assistant", "One.")]})),
    Reason.NO_OUTPUT: Case(raw({"messages": [message("user", "Anybody there?")]})),
    Reason.NO_STREAM_FOR_ROLE: Case(TOOLS),
    Reason.NOT_REVERSIBLE: Case(raw(chat("Say XYZZY please.", "No.")), tokenizer=forgetful),
    Reason.TOO_LONG: Case(LONG, ("rows.max=100",)),
    Reason.PLAN_INVALID: Case(raw(chat("Unplanned.", "Yes.")), planned=True),
}


def convert_file(path: Path, recipe: Recipe, tokenizer: Tokenizer, plans: Mapping[str, Plan] | None) -> ShardFiles:
    """The one shard of a file."""
    files = resolve_inputs([str(path)])
    (cut,) = cut_all(files, [scan(file, recipe.read) for file in files], recipe.read)
    converter = ShardConverter(recipe, tokenizer, token_ids(recipe.layout, tokenizer))
    given = None if plans is None else Plans(recipe.layout, plans)
    return converter.convert(cut.file, cut.format, records(cut, recipe.read), given)


def rows_of(made: ShardFiles) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(made.data)).to_pylist()
    return rows


def plans_of(made: ShardFiles) -> dict[str, Plan]:
    return {plan.id: plan for plan in plans_or_faults(unpack(made.plans)) if isinstance(plan, Plan)}


def rejects_of(made: ShardFiles) -> dict[int, str]:
    lines = [msgspec.json.decode(line) for line in made.quarantine.splitlines()]
    return {line["source"]["record"]: line["reason"] for line in lines}


#: What only a teacher causes: tests/teach/test_shard.py.
TAUGHT = {Reason.TEACHER_REFUSED, Reason.TEACHER_TRUNCATED, Reason.TEACHER_INVALID, Reason.CAUSALITY}


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in TAUGHT])
def test_every_reason_has_a_record_that_causes_it_and_its_neighbours_survive(reason: Reason, tmp_path: Path) -> None:
    case = CASES[reason]
    recipe, tokenizer = load_recipe("wait-k", case.settings), case.tokenizer()
    if reason is Reason.CORRUPT_FILE:
        path = tmp_path / "chats.jsonl.zst"
        whole = zstandard.compress(b"\n".join([*GOOD[:2], b""]))
        path.write_bytes(whole + zstandard.compress(GOOD[2] * 100)[:-9])
        bad = 2
        good = {0: GOOD[0], 1: GOOD[1]}
    else:
        path = tmp_path / "chats.jsonl"
        path.write_bytes(b"\n".join([GOOD[0], case.line, GOOD[1]]))
        bad = 1
        good = {0: GOOD[0], 2: GOOD[1]}
    plans = None
    if case.planned:
        apart = plans_of(convert_lines(list(good.values()), recipe, file=path.name))
        plans = {f"{path.name}:{at}": apart[f"{path.name}:{i}"] for i, at in enumerate(good)}

    made = convert_file(path, recipe, tokenizer, plans)

    assert made.counts.quarantine_reasons == {str(reason): 1}
    assert (made.counts.read, made.counts.converted, made.counts.quarantined) == (3, 2, 1)
    assert rejects_of(made) == {bad: str(reason)}
    alone = rows_of(convert_lines(list(good.values()), recipe, tokenizer, file=path.name))
    for found, expected, number in zip(rows_of(made), alone, good, strict=True):
        assert found["id"] == f"{path.name}:{number}"
        for column in ("spans", "parts", "num_rows", "num_tokens", "meta"):
            assert found[column] == expected[column]


POOL = {
    "good": GOOD[0],
    "windows": raw(chat(*["Why? Because.", "I see. Good."] * 9)),
    "filtered": raw(chat("x", "y")),
    **{str(reason): case.line for reason, case in CASES.items() if not case.settings and not case.planned},
    str(Reason.TOO_LONG): LONG,
}
del POOL[str(Reason.CORRUPT_FILE)]


@given(st.lists(st.sampled_from(sorted(POOL)), max_size=12))
@settings(max_examples=60)
def test_every_record_ends_in_exactly_one_place(kinds: list[str]) -> None:
    """read = converted + quarantined + filtered, whatever the mixture; and each record where it belongs."""
    recipe = load_recipe("wait-k", ["filter.min_characters=5", "rows.max=60", "rows.long=window"])
    made = convert_lines([POOL[kind] for kind in kinds], recipe, forgetful())
    counts = made.counts
    assert counts.read == len(kinds) == counts.converted + counts.quarantined + counts.filtered
    assert counts.filtered == kinds.count("filtered")
    rejected = rejects_of(made)
    assert rejected == {i: kind for i, kind in enumerate(kinds) if kind in list(Reason)}
    assert sum(counts.quarantine_reasons.values()) == counts.quarantined == len(rejected)
    rows = rows_of(made)
    converted = [i for i, kind in enumerate(kinds) if kind in ("good", "windows")]
    assert list(dict.fromkeys(row["source"]["record"] for row in rows)) == converted
    assert list(plans_of(made)) == [f"chats.jsonl:{i}" for i in converted]
    assert counts.rows == len(rows)
    assert counts.tokens == sum(row["num_tokens"] for row in rows)
    for i in converted:
        ids = [row["id"] for row in rows if row["source"]["record"] == i]
        if kinds[i] == "good":
            assert ids == [f"chats.jsonl:{i}"]
        else:
            assert len(ids) > 1
            assert ids == [f"chats.jsonl:{i}#{window}" for window in range(len(ids))]


@pytest.mark.parametrize("recipe", ["wait-k", "agent", "sequential"])
@pytest.mark.parametrize("make_tokenizer", [builtin, neox], ids=["builtin", "neox"])
@given(st.lists(st.lists(texts(), min_size=2, max_size=5), min_size=1, max_size=3))
@settings(max_examples=40)
def test_every_text_comes_back_byte_for_byte(
    recipe: str, make_tokenizer: Callable[[], Tokenizer], contents: list[list[str]]
) -> None:
    """Each span decodes on its own, the end marker left out, and the spans of a part, joined, are its text."""
    tokenizer = make_tokenizer()
    # In an answer, <think> is no text; tests/read says what it is.
    contents = [
        [text.replace("<think>", "<thin>") if i % 2 else text for i, text in enumerate(said)] for said in contents
    ]
    made = convert_lines([raw(chat(*said)) for said in contents], load_recipe(recipe), tokenizer)
    assert made.counts.quarantined == 0
    end_id = token_ids(load_recipe(recipe).layout, tokenizer).end_id
    for row, said in zip(rows_of(made), contents, strict=True):
        found = [""] * len(said)
        cells: set[tuple[int, int]] = set()
        for span in row["spans"]:
            tokens = span["tokens"]
            assert end_id not in tokens[:-1]
            found[span["part"]] += tokenizer._tokenizer.decode(
                [token for token in tokens if token != end_id], skip_special_tokens=False
            )
            own = {(span["stream"], span["start"] + i) for i in range(len(tokens))}
            assert not own & cells  # no two spans of a stream overlap
            cells |= own
        assert found == said
        assert row["num_tokens"] == len(cells)
        assert row["num_rows"] == max((cell[1] + 1 for cell in cells), default=0)


def test_a_reply_across_windows_has_no_call_in_its_window() -> None:
    """reply_to is the part of the call within the same grid, or -1."""
    record = {
        "messages": [
            message("user", "Book it, and tell me when it is done."),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            message("assistant", "I will."),
            message("user", "Is it done?"),
            message("tool", "Booked.", tool_call_id="c1"),
            message("assistant", "Done."),
        ]
    }
    recipe = load_recipe("agent", ["rows.max=30", "rows.long=window", "latency=0"])
    rows = rows_of(convert_lines([raw(record)], recipe))
    assert [[part["role"] for part in row["parts"]] for row in rows] == [
        ["user", "call", "answer"],
        ["user", "result", "answer"],
    ]
    assert [part["reply_to"] for row in rows for part in row["parts"]] == [-1] * 6


def test_more_rows_than_a_column_can_hold_are_too_long() -> None:
    recipe = load_recipe("agent", [f"latency={2**31 - 1}"])
    made = convert_lines([TOOLS, GOOD[0]], recipe)
    assert rejects_of(made) == {0: "too_long"}


def test_truncation_keeps_whole_turns_and_says_so() -> None:
    recipe = load_recipe("wait-k", ["rows.max=40", "rows.long=truncate"])
    made = convert_lines([POOL["windows"], GOOD[0]], recipe)
    cut, whole = rows_of(made)
    assert made.counts.truncated == 1
    said = json.loads(cut["meta"])["truncated"]
    assert said["turns"] == 9
    assert 0 < said["turns_kept"] < 9
    assert len(cut["parts"]) == 2 * said["turns_kept"]
    assert cut["num_rows"] <= 40 < said["rows"]
    assert len(plans_of(made)["chats.jsonl:0"].segments) > len(cut["spans"])  # the plan is kept whole
    assert whole["meta"] == "{}"


def test_dropped_parts_are_counted_and_leave_no_trace() -> None:
    record = {"messages": [message("user", "Why?"), message("assistant", "So.", reasoning_content="Hm.")]}
    made = convert_lines([raw(record)], load_recipe("wait-k", ["layout=chat-2"]))
    assert made.counts.dropped_parts == {"think": 1}
    assert [part["role"] for part in rows_of(made)[0]["parts"]] == ["user", "answer"]


def test_plans_given_again_make_the_same_grids() -> None:
    recipe = load_recipe("agent")
    first = convert_lines([TOOLS, *GOOD], recipe)
    assert convert_lines([TOOLS, *GOOD], recipe, plans=plans_of(first)) == first


def test_a_shard_without_good_records_is_an_empty_table() -> None:
    made = convert_lines([b"42"], load_recipe("agent"))
    assert rows_of(made) == []
    assert plans_of(made) == {}
    assert made.counts.read == made.counts.quarantined == 1
