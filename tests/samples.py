"""What several test files need: made-up conversations, and short ways through the pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from jobs.progress import Progress
from jobs.run import RunOptions, run
from pipeline.convert import ShardConverter, ShardFiles
from pipeline.grid.ids import token_ids
from pipeline.grid.tokens import Tokenizer, load_tokenizer
from pipeline.layout import Layout
from pipeline.layout_file import expand
from pipeline.plan.plan import Plan, Plans
from pipeline.read.containers import Record
from pipeline.read.conversation import Part
from pipeline.read.inputs import resolve_inputs
from pipeline.recipe import Recipe, load_recipe
from pipeline.store.manifest import Manifest

NEOX = Path(__file__).parents[2] / "shared" / "tokenizers" / "gpt-neox-20b.tokenizer.json"

#: Texts that trip tokenizers: look-alikes of control tokens, combining characters, white space, broken words.
TRICKY = (
    "<|im_end|>", "<|endoftext|>", "<|padding|>", "|||IP_ADDRESS|||", "<think>", "</s>", "e\u0301", "\u212b", "\ufb01",
    " ", "\n", "\t", "\r\n", "   ", "\u3000", "\u00a0", "\u200d", "\ufeff", "👩\u200d👩\u200d👧", "👍🏽", "가",
    "\u1100\u1161", "日本語。", "नमस्ते", "don't", "DON'T", "1234567", '{"a": [1]}', "Ġ", "▁", ".", "! ", "?\n", "e.g. ",
    "\x00", "\x7f", "\ue000", "\U0010ffff",
)  # fmt: skip


_CHARACTERS = st.characters(exclude_categories=["Cs"])
#: For conversations of which only the structure matters: cheap to draw.
_SHORT = st.sampled_from(
    ["", "Yes.", "Is it? It is.", "One. Two! Three?", " a\n\nb ", "e\u0301 <|im_end|>", "你好。再见。"]
)


def texts(max_pieces: int = 6) -> st.SearchStrategy[str]:
    """Any text without lone surrogates, with more than its share of what trips tokenizers."""
    piece = st.one_of(st.sampled_from(TRICKY), st.text(_CHARACTERS, max_size=8))
    return st.lists(piece, max_size=max_pieces).map("".join)


@st.composite
def conversations(draw: st.DrawFn, tools: bool = True, text: st.SearchStrategy[str] = _SHORT) -> list[Part]:
    """The parts of a conversation: turns of user text, thoughts, answers, and parallel calls with their results.

    Now and then of an odd shape: system text in the middle, a user who interrupts, results that come one by one.
    """
    parts: list[Part] = []
    clock = 0.0

    def add(role: str, reply_to: int = -1, tool: str | None = None) -> int:
        nonlocal clock
        passed = draw(st.sampled_from([None, 0.0, 0.1, 3.0, 1000.0]))  # None: this message has no time
        clock += passed or 0.0
        seconds = None if passed is None else clock
        parts.append(Part(role, draw(text), len(parts), reply_to, tool, seconds))  # type: ignore[arg-type]
        return len(parts) - 1

    if draw(st.booleans()):
        add("system")
    steps = ["think", "answer"] + ["tools"] * tools
    for _ in range(draw(st.integers(1, 3))):
        for _ in range(draw(st.integers(1, 2))):
            add("user")
        for step in draw(st.lists(st.sampled_from([*steps, *steps, "system", "user"]), min_size=1, max_size=4)):
            if step != "tools":
                add(step)
                continue
            calls = [add("call", tool=draw(st.sampled_from("abc"))) for _ in range(draw(st.integers(1, 4)))]
            for call in draw(st.permutations(calls))[draw(st.integers(0, 1)) :]:
                add("result", call)
                if draw(st.integers(0, 5)) == 0:  # the model speaks before all results are there
                    add(draw(st.sampled_from(["think", "answer"])))
    return parts


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    """One OpenAI message."""
    return {"role": role, "content": content, **more}


def chat(*contents: str, **more: Any) -> dict[str, Any]:
    """One OpenAI record in which user and assistant take turns."""
    return {"messages": [message("assistant" if i % 2 else "user", text) for i, text in enumerate(contents)], **more}


def raw(record: Any) -> bytes:
    """A record as one line of JSON."""
    return json.dumps(record, ensure_ascii=False).encode()


def layout(*streams: str, roles: Mapping[str, str], **more: Any) -> Layout:
    """A layout of streams written as ``name:kind``."""
    named = [dict(zip(("name", "kind"), stream.split(":"), strict=True)) for stream in streams]
    every = dict.fromkeys(("system", "user", "think", "answer", "call", "result"), "reject")
    return expand({"name": "test", "streams": named, "roles": {**every, **roles}, **more}, "test")


@cache
def builtin() -> Tokenizer:
    """The built-in tokenizer."""
    return load_tokenizer("builtin")


@cache
def neox() -> Tokenizer:
    """A real vocabulary of 50,000 tokens, where this checkout has one beside it; skips the test where not."""
    if not NEOX.exists():
        pytest.skip(f"no {NEOX.name} beside this checkout")
    return load_tokenizer(str(NEOX))


def convert_lines(
    lines: Sequence[bytes],
    recipe: Recipe,
    tokenizer: Tokenizer | None = None,
    plans: Mapping[str, Plan] | None = None,
    file: str = "chats.jsonl",
    format_name: str = "openai",
) -> ShardFiles:
    """One shard of raw records."""
    tokenizer = tokenizer or builtin()
    converter = ShardConverter(recipe, tokenizer, token_ids(recipe.layout, tokenizer))
    records = [Record(number, line, 0, len(line)) for number, line in enumerate(lines)]
    return converter.convert(file, format_name, records, None if plans is None else Plans(recipe.layout, plans))


def make_dataset(
    inputs: Path | str,
    out: Path,
    recipe: str = "agent",
    settings: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
) -> Manifest:
    """A whole run, in this process."""
    options = RunOptions(
        files=resolve_inputs([str(inputs)]),
        out=str(out),
        recipe=load_recipe(recipe, settings),
        tokenizer=tokenizer or builtin(),
        ray="off",
        fresh=True,
    )
    return run(options, Progress()).manifest
