"""Damaged records: valid ones of every format, with a few values replaced, removed or said twice."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.read.formats import FORMATS
from pipeline.read.parse import read_conversation

RECORDS: dict[str, tuple[str, Any]] = {
    "openai": (
        "openai",
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, "b"], "timestamp": 1_700_000_000},
                {
                    "role": "assistant",
                    "reasoning_content": "r",
                    "content": None,
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
                        {"id": "2", "type": "function", "function": {"name": "g", "arguments": {"y": [2]}}},
                    ],
                    "created_at": "2023-11-14T22:13:20Z",
                },
                {"role": "tool", "tool_call_id": "2", "name": "g", "content": [{"type": "text", "text": "2"}]},
                {"role": "tool", "tool_call_id": "1", "content": {"x": 1}},
                {"role": "assistant", "content": "<think>t</think>c", "refusal": None},
                {"role": "assistant", "content": None, "function_call": {"name": "h", "arguments": "{}"}},
                {"role": "function", "name": "h", "content": "3"},
            ],
            "tools": [{"name": "f"}],
        },
    ),
    "openai, a list": ("openai", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
    "openai, packed": ("openai", {"messages": '[{"role": "user", "content": "a"}]', "id": 1}),
    "sharegpt": (
        "sharegpt",
        {
            "system": "s",
            "conversations": [
                {"from": "human", "value": "a", "time": 1.5},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "function_call", "value": [{"name": "g", "arguments": "{}", "id": 7}]},
                {"from": "observation", "value": {"x": 1}, "tool_call_id": 7},
                {"from": "tool", "value": [{"type": "text", "text": "2"}], "name": "f"},
                {"from": "gpt", "value": "<think>t</think>b"},
            ],
        },
    ),
    "alpaca": ("alpaca", {"instruction": "i", "input": "a", "output": "b", "id": 1}),
    "alpaca, as Dolly": ("alpaca", {"instruction": "i", "context": "a", "response": "b"}),
    "prompt-completion": ("prompt-completion", {"prompt": "a", "completion": "b", "system_prompt": "s"}),
    "prompt-completion, lists": (
        "prompt-completion",
        {
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "b", "tool_calls": [{"name": "f", "arguments": {}}]}],
        },
    ),
    "topic": ("topic", {"topic": "a", "id": 1}),
    "topic, as a prompt": ("topic", {"prompt": "a", "topic": "b"}),
    "harmony": (
        "harmony",
        {
            "messages": [
                {"role": "developer", "content": "d"},
                {"role": "user", "content": "a", "channel": None},
                {"role": "assistant", "channel": "analysis", "content": "t"},
                {"role": "assistant", "channel": "commentary", "recipient": "functions.f", "content": '{"x": 1}'},
                {"role": "functions.f", "recipient": "assistant", "channel": "commentary", "content": "r"},
                {"role": "assistant", "channel": "commentary", "recipient": "functions.g", "content": [{"text": "{}"}]},
                {"role": "tool", "name": "functions.g", "content": {"y": 2}},
                {"role": "assistant", "channel": "final", "content": [{"type": "text", "text": "b"}]},
            ]
        },
    ),
    "harmony, rendered": (
        "harmony",
        {
            "text": "<|start|>user<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>t<|end|>"
            "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
            "<|start|>functions.f to=assistant<|channel|>commentary<|message|>r<|end|>"
            "<|start|>assistant<|channel|>final<|message|>b<|return|>",
            "id": 1,
        },
    ),
}

#: What a value may become, of every kind, and some that are like what belongs there.
VALUES: list[Any] = [
    None, True, False, 0, -1, 7, 1.5, 1 << 80, 1e300, "", "text", "user", "tool", "function_call", "final", "[]", "{",
    '[{"a":' * 700 + "1" + "}]" * 700,
    "[" * 2000, "9" * 5000, "<|start|>", "<|start|>user<|message|>", "nan", "9999-12-31T23:59:59-23:59",
    [], [None], [[]], ["text"], [{}], [{"type": "text"}], [{"type": []}], {}, {"text": {}}, {"name": "f"},
    {"role": "user", "content": "x"}, {"from": "human", "value": "x"}, {"function": {"name": []}},
]  # fmt: skip


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Everything inside a value: what holds it, and its key or index there."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


@st.composite
def damaged(draw: st.DrawFn, record: Any) -> Any:
    """``record`` with one to three places replaced, removed or doubled."""
    record = copy.deepcopy(record)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(record))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        action = draw(st.sampled_from(["replace", "replace", "remove", "double"]))
        if action == "replace":
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif action == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[key] = [holder[key], copy.deepcopy(holder[key])]
    return record


@pytest.mark.parametrize("name", RECORDS)
def test_the_records_are_valid(name: str) -> None:
    format, record = RECORDS[name]
    assert read_conversation(json.dumps(record).encode(), format).parts


@pytest.mark.parametrize("name", RECORDS)
@settings(max_examples=300)
@given(data=st.data())
def test_damage_is_rejected_or_read(name: str, data: st.DataObject) -> None:
    """Nothing but Rejected is raised: by the format's own reader, nor by any other that the file may be read with."""
    raw = json.dumps(data.draw(damaged(RECORDS[name][1]))).encode()
    for format in (*FORMATS, "unknown"):
        for field in (None, "messages", "conversations.0", "messages.role"):
            try:
                read_conversation(raw, format, field)
            except Rejected as error:
                assert error.message
