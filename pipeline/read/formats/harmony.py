"""OpenAI harmony: messages with channels, as objects or as the rendered text.

``analysis`` is thought; a message with a recipient is a call (``commentary`` to ``functions.x``, or a
built-in tool); ``commentary`` without one and ``final`` are answers. Messages without a channel are read as
OpenAI messages. The rendered form, ``<|start|>assistant<|channel|>analysis<|message|>…<|end|>``, stands in
``text`` or in place of the list.
"""

from __future__ import annotations

import re
from typing import Any

from pipeline.errors import Reason, Rejected
from pipeline.read.conversation import Conversation
from pipeline.read.formats import openai
from pipeline.read.formats.build import Builder
from pipeline.read.formats.fields import (
    TIME_FIELDS,
    find_messages,
    keep_rest,
    message_list,
    recorded_result,
    seconds_of,
    take_messages,
    text_of,
)

START, MESSAGE = "<|start|>", "<|message|>"
_END = re.compile(r"<\|(?:end|call|return)\|>")
_HEADER_TEXT = re.compile(r"(?P<role>[^\s<]+)(?P<rest>[^\0]*)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=(\S+?)(?=\s|<|$)")
_NOBODY = (None, "", "all", "user", "assistant")
_PLAIN_ROLES = frozenset({"system", "developer", "user", "assistant"})

#: The fields that are read, by what the message is.
_HEADER = frozenset({"channel", "recipient"})
_KNOWN = frozenset({"role", "content", *TIME_FIELDS}) | _HEADER
_KNOWN_OF_RESULTS = _KNOWN | {"name", "tool_call_id"}
_KNOWN_OF_CALLS = _KNOWN | {"id"}
_KNOWN_OF_THOUGHTS = _KNOWN | {"tool_calls", "function_call"}


def matches(record: Any, field: str | None = None) -> bool:
    """Some message has a ``channel``, or there is a rendered text."""
    if _rendered(record, field) is not None:
        return True
    messages = find_messages(record, field)
    return isinstance(messages, list) and any(
        isinstance(message, dict) and "role" in message and message.get("channel") for message in messages
    )


def _rendered(record: Any, field: str | None) -> str | None:
    text = find_messages(record, field)
    if text is None and field is None and isinstance(record, dict):
        text = record.get("text")
    return text if isinstance(text, str) and text.lstrip().startswith(START) else None


def read(record: Any, field: str | None = None) -> Conversation:
    """Read one record. Raises Rejected."""
    builder = Builder()
    text = _rendered(record, field)
    if text is not None:
        if find_messages(record, field) is None:
            meta = {name: value for name, value in record.items() if name != "text"}
        else:
            meta = take_messages(record, field)[1]
        for number, message in enumerate(parse(text)):
            _add_message(builder, number, message)
        return builder.conversation(meta)
    messages, meta = take_messages(record, field)
    for number, message in enumerate(message_list(messages)):
        _add_message(builder, number, message)
    return builder.conversation(meta)


def _add_message(builder: Builder, number: int, message: dict[str, Any]) -> None:
    role, channel, recipient = message.get("role"), message.get("channel"), message.get("recipient")
    content = message.get("content")
    seconds = seconds_of(message)
    before = len(builder.parts)
    if role == "tool" or (isinstance(role, str) and role not in _PLAIN_ROLES and _is_tool(role, message)):
        name = message.get("name") if role == "tool" else role
        name = name.removeprefix("functions.") if isinstance(name, str) else None
        text = recorded_result(message, "content", number)
        builder.result(text, number, seconds, message.get("tool_call_id"), name)
        known = _KNOWN_OF_RESULTS
    elif role == "assistant" and recipient not in _NOBODY:
        name = recipient.removeprefix("functions.") if isinstance(recipient, str) else None
        arguments = text_of(content, number) if isinstance(content, list) else content
        builder.call(name, arguments, number, seconds, message.get("id"))
        known = _KNOWN_OF_CALLS
    elif role == "assistant" and channel == "analysis":
        text = "" if content is None and openai.has_calls(message) else text_of(content, number)
        if text:
            builder.add("think", text, number, seconds)
        openai.add_calls(builder, number, message, seconds)
        known = _KNOWN_OF_THOUGHTS
    elif role == "assistant" and channel not in (None, "", "commentary", "final"):
        raise Rejected(
            Reason.UNKNOWN_ROLE,
            f"message {number}: channel {channel!r} is not known; known: analysis, commentary, final",
        )
    else:
        openai.add_message(builder, number, message, _HEADER)
        return
    if not message.keys() <= known:
        keep_rest(builder, number, message, known, before)


def _is_tool(role: str, message: dict[str, Any]) -> bool:
    return role.startswith("functions.") or message.get("recipient") == "assistant"


def parse(text: str) -> list[dict[str, Any]]:
    """The messages of a rendered conversation; contents are exactly what stands between the markers."""
    messages: list[dict[str, Any]] = []
    position = 0
    while True:
        begin = text.find(START, position)
        if text[position : begin if begin >= 0 else None].strip():
            raise Rejected(Reason.UNSUPPORTED_CONTENT, f"text outside of harmony messages, at character {position:,}")
        if begin < 0:
            return messages
        number = len(messages)
        body = text.find(MESSAGE, begin)
        header = _HEADER_TEXT.fullmatch(text, begin + len(START), body) if body >= 0 else None
        if header is None:
            raise Rejected(Reason.UNSUPPORTED_CONTENT, f"message {number}: no header, at character {begin:,}")
        body += len(MESSAGE)
        end = _END.search(text, body)
        content = text[body : end.start() if end else len(text)]
        position = end.end() if end else len(text)
        message: dict[str, Any] = {"role": header["role"], "content": content}
        if channel := _CHANNEL.search(header["rest"]):
            message["channel"] = channel[1]
        if recipient := _RECIPIENT.search(header["rest"]):
            message["recipient"] = recipient[1]
        messages.append(message)
