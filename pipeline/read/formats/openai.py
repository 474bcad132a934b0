"""OpenAI chat messages: ``role``, ``content``, ``tool_calls``, ``tool_call_id``, and what grew around them.

Also read: ``reasoning_content`` (or ``reasoning``, ``thinking``), ``refusal``, the older ``function_call``
and role ``function``, times per message, and a record that is itself the list of messages.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import Reason, Rejected
from pipeline.read.conversation import Conversation
from pipeline.read.formats.build import Builder
from pipeline.read.formats.fields import (
    first_message,
    message_list,
    result_text,
    seconds_of,
    take_messages,
    text_of,
)

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")

KNOWN_ROLES = "system, developer, user, assistant, tool, function"


def matches(record: Any, field: str | None = None) -> bool:
    """The first message has a ``role``."""
    message = first_message(record, field)
    return message is not None and "role" in message


def read(record: Any, field: str | None = None) -> Conversation:
    """Read one record. Raises Rejected."""
    messages, meta = take_messages(record, field)
    builder = Builder()
    for number, message in enumerate(message_list(messages)):
        if "channel" in message:
            raise Rejected(
                Reason.UNKNOWN_FORMAT, f"message {number} has a channel: read this file with --format harmony"
            )
        add_message(builder, number, message)
    return builder.conversation(meta)


def add_message(builder: Builder, number: int, message: dict[str, Any]) -> None:
    """Add the parts of one message: think, answer, calls."""
    role = message.get("role")
    content = message.get("content")
    seconds = seconds_of(message) if len(message) > 2 else None
    if role == "user":
        builder.add("user", text_of(content, number), number, seconds)
    elif role == "assistant":
        if len(message) == 2 and type(content) is str:
            builder.answer(content, number, seconds)
        else:
            _add_assistant(builder, number, message, content, seconds)
    elif role == "system" or role == "developer":
        builder.add("system", text_of(content, number), number, seconds)
    elif role == "tool" or role == "function":
        if "content" not in message:
            raise Rejected(Reason.UNSUPPORTED_CONTENT, f"message {number}: a tool result without content")
        text = result_text(content, number)
        builder.result(text, number, seconds, message.get("tool_call_id"), message.get("name"))
    elif role is None:
        raise Rejected(Reason.UNKNOWN_ROLE, f"message {number} has no role")
    else:
        raise Rejected(Reason.UNKNOWN_ROLE, f"message {number}: role {role!r} is not known; known: {KNOWN_ROLES}")


def _add_assistant(builder: Builder, number: int, message: dict[str, Any], content: Any, seconds: float | None) -> None:
    for name in REASONING_FIELDS:
        reasoning = message.get(name)
        if reasoning:
            builder.add("think", text_of(reasoning, number), number, seconds)
            break
    calls, function, refusal = message.get("tool_calls"), message.get("function_call"), message.get("refusal")
    if content is not None:
        text = text_of(content, number)
        # An empty text is something said only where nothing else was.
        if text or not (calls or function or refusal):
            builder.answer(text, number, seconds)
    if refusal:
        builder.add("answer", text_of(refusal, number), number, seconds)
    if calls:
        if not isinstance(calls, list):
            raise Rejected(Reason.UNSUPPORTED_CONTENT, f"message {number}: tool_calls is not a list")
        for call in calls:
            _add_call(builder, number, call, seconds)
    if function:
        _add_call(builder, number, function, seconds)


def _add_call(builder: Builder, number: int, call: Any, seconds: float | None) -> None:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise Rejected(Reason.UNSUPPORTED_CONTENT, f"message {number}: a tool call is not an object")
    builder.call(function.get("name"), function.get("arguments", {}), number, seconds, call.get("id"))
