"""One record to JSON: every reason code has a record that causes it, and nothing else is ever raised."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Reason, Rejected
from pipeline.read.decode import MAX_DEPTH, decode
from pipeline.read.formats import FORMATS
from pipeline.read.parse import read_conversation

USER = '{"role": "user", "content": "hi"}'


def reason(raw: bytes | str, format: str = "openai", field: str | None = None) -> Reason:
    with pytest.raises(Rejected) as caught:
        read_conversation(raw.encode() if isinstance(raw, str) else raw, format, field)
    assert caught.value.message
    return caught.value.reason


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("", Reason.INVALID_JSON),
        ("{", Reason.INVALID_JSON),
        ('{"a": NaN}', Reason.INVALID_JSON),
        ('{"a": -Infinity}', Reason.INVALID_JSON),
        ('{"a": 1e400}', Reason.INVALID_JSON),
        ('{"a": 1} {"a": 2}', Reason.INVALID_JSON),
        ('{"a": "\n"}', Reason.INVALID_JSON),
        ("{'a': 1}", Reason.INVALID_JSON),
        ("\ufeff{}", Reason.INVALID_JSON),
        (b'{"a": "\xff"}', Reason.INVALID_UNICODE),
        (b'{"\xff": "a"}', Reason.INVALID_UNICODE),
        (b'{"a": "\xed\xa0\x80"}', Reason.INVALID_UNICODE),
        (b"\xff\xfe{\0}\0", Reason.INVALID_UNICODE),
        ('{"a": "\\ud800"}', Reason.INVALID_UNICODE),
        ('{"a": "\\udc00\\ud800"}', Reason.INVALID_UNICODE),
        ('{"\\ud83d": 1}', Reason.INVALID_UNICODE),
        ('{"a": "\\ud800", }', Reason.INVALID_JSON),
        ("[" * 100_000, Reason.TOO_DEEP),
        ("[" * 300 + "]" * 300, Reason.TOO_DEEP),
        ('{"a":' * 300 + "1" + "}" * 300, Reason.TOO_DEEP),
        ("12", Reason.UNKNOWN_FORMAT),
        ('"text"', Reason.UNKNOWN_FORMAT),
        ("{}", Reason.NO_MESSAGES),
        ("[]", Reason.NO_MESSAGES),
        ('{"messages": []}', Reason.NO_MESSAGES),
        ('{"messages": "text"}', Reason.NO_MESSAGES),
        ('{"messages": null}', Reason.NO_MESSAGES),
        ('{"messages": [{"role": "assistant", "content": null}]}', Reason.NO_MESSAGES),
        ('{"question": "a", "answer": "b"}', Reason.UNKNOWN_FORMAT),
        ('{"messages": [{"role": "wizard", "content": "hi"}]}', Reason.UNKNOWN_ROLE),
        ('{"messages": [{"content": "hi"}]}', Reason.UNKNOWN_ROLE),
        ('{"messages": [{"role": ["user"], "content": "hi"}]}', Reason.UNKNOWN_ROLE),
        ('{"messages": ["hi"]}', Reason.UNSUPPORTED_CONTENT),
        ('{"messages": [{"role": "user", "content": 3}]}', Reason.UNSUPPORTED_CONTENT),
        ('{"messages": [{"role": "user"}]}', Reason.UNSUPPORTED_CONTENT),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
            Reason.UNSUPPORTED_CONTENT,
        ),
        ('{"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}', Reason.UNSUPPORTED_CONTENT),
        ('{"messages": [{"role": "assistant", "tool_calls": "f()"}]}', Reason.UNSUPPORTED_CONTENT),
        ('{"messages": [{"role": "tool", "content": "3", "tool_call_id": "x"}]}', Reason.RESULT_WITHOUT_CALL),
        ('{"messages": [{"role": "tool", "content": "3"}]}', Reason.RESULT_WITHOUT_CALL),
        (
            '{"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]},'
            ' {"role": "tool", "content": "3", "tool_call_id": "2"}]}',
            Reason.RESULT_WITHOUT_CALL,
        ),
        (
            f'{{"messages": [{USER}, {{"role": "assistant", "channel": "final", "content": "x"}}]}}',
            Reason.UNKNOWN_FORMAT,
        ),
    ],
    ids=lambda value: None if isinstance(value, Reason) else repr(value[:50]),
)
def test_reasons(raw: bytes | str, expected: Reason) -> None:
    assert reason(raw) is expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"from": ["human"], "value": "hi"}, Reason.UNKNOWN_ROLE),
        ({"from": {}, "value": "hi"}, Reason.UNKNOWN_ROLE),
        ({"from": "function_call", "value": "f()"}, Reason.UNSUPPORTED_CONTENT),
        ({"from": "function_call", "value": "[" * 300 + "]" * 300}, Reason.UNSUPPORTED_CONTENT),
        ({"from": "function_call", "value": '{"name":"f","arguments":' + "9" * 5000 + "}"}, Reason.UNSUPPORTED_CONTENT),
    ],
)
def test_sharegpt_reasons(message: dict[str, object], expected: Reason) -> None:
    assert reason(json.dumps({"conversations": [message]}), "sharegpt") is expected


def test_messages_say_where() -> None:
    with pytest.raises(Rejected, match="message 1: role 'foo' is not known; known: system"):
        read_conversation(f'{{"messages": [{USER}, {{"role": "foo", "content": ""}}]}}'.encode(), "openai")
    with pytest.raises(Rejected, match="read as openai, but this record is sharegpt"):
        read_conversation(b'{"data": [{"from": "human", "value": "x"}]}', "openai", "data")


def test_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(Rejected, match="known: harmony, openai, sharegpt, alpaca, prompt-completion") as caught:
        read_conversation(b'{"a": 1}', "unknown")
    assert caught.value.reason is Reason.UNKNOWN_FORMAT


def test_depth_does_not_depend_on_the_stack() -> None:
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH

    def below(levels: int) -> object:
        return below(levels - 1) if levels else decode(deep)

    room = sys.getrecursionlimit() - 2 * MAX_DEPTH
    assert below(1) == below(room // 2) == json.loads(deep)
    assert decode(b'"' + b"[" * 5000 + b'"') == "[" * 5000


def test_integers_are_exact() -> None:
    assert decode(b"[123456789012345678901234567890, -1]") == [123456789012345678901234567890, -1]


NAMES = """messages conversations role from content value text type tool_calls tool_call_id function id name
    arguments function_call channel recipient prompt completion instruction input output thinking refusal
    timestamp"""
scalars = st.sampled_from([None, True, 3, -1.5, "", "user", "assistant", "tool", "human", "gpt", "<think>a</think>b"])
json_like = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES.split()), inner, max_size=5),
    max_leaves=25,
)


@given(json_like, st.sampled_from(FORMATS), st.sampled_from([None, "messages", "value.text", "text"]))
def test_nothing_but_rejected_is_raised(value: object, format: str, field: str | None) -> None:
    try:
        conversation = read_conversation(json.dumps(value).encode(), format, field)
    except Rejected:
        return
    assert conversation.parts
    for index, part in enumerate(conversation.parts):
        assert isinstance(part.text, str)
        if part.role == "result":
            assert 0 <= part.reply_to < index and conversation.parts[part.reply_to].role == "call"
        else:
            assert part.reply_to == -1
        assert (part.tool is not None) == (part.role == "call")


@given(st.binary(max_size=60))
def test_any_bytes_are_rejected_or_read(raw: bytes) -> None:
    with pytest.raises(Rejected):
        read_conversation(raw, "openai")
