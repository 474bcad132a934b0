"""OpenAI chat messages: ``role``, ``content``, ``tool_calls``, ``tool_call_id``, and what grew around them.

Also read: ``reasoning_content`` (or ``reasoning``, ``thinking``), ``refusal``, the older ``function_call``
and role ``function``, times per message, and a record that is itself the list of messages. Other fields of a
message are kept in the meta.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import Reason, Rejected
from pipeline.read.conversation import Conversation
from pipeline.read.formats.build import Builder
from pipeline.read.formats.fields import (
    TIME_FIELDS,
    first_message,
    keep_rest,
    message_list,
    recorded_result,
    seconds_of,
    take_messages,
    text_of,
)

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")

KNOWN_ROLES = "system, developer, user, assistant, tool, function"

_KNOWN = frozenset({"role", "content", *TIME_FIELDS})
_CALLS = frozenset({"tool_calls", "function_call"})
_KNOWN_OF_RESULTS = _KNOWN | {"tool_call_id", "name"}

#: The fields that are read, by the message's role.
KNOWN_FIELDS: dict[str, frozenset[str]] = {
    "system": _KNOWN,
    "developer": _KNOWN,
    "user": _KNOWN,
    "assistant": _KNOWN | _CALLS | {"refusal", *REASONING_FIELDS},
    "tool": _KNOWN_OF_RESULTS,
    "function": _KNOWN_OF_RESULTS,
}


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


def add_message(
    builder: Builder, number: int, message: dict[str, Any], also_known: frozenset[str] = frozenset()
) -> None:
    """Add the parts of one message: think, answer, calls. Fields in ``also_known`` are the caller's."""
    role = message.get("role")
    before = len(builder.parts)
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
        text = recorded_result(message, "content", number)
        builder.result(text, number, seconds, message.get("tool_call_id"), message.get("name"))
    elif role is None:
        raise Rejected(Reason.UNKNOWN_ROLE, f"message {number} has no role")
    else:
        raise Rejected(Reason.UNKNOWN_ROLE, f"message {number}: role {role!r} is not known; known: {KNOWN_ROLES}")
    known = KNOWN_FIELDS[role]
    if not message.keys() <= known:
        keep_rest(builder, number, message, known | also_known, before)


def _add_assistant(builder: Builder, number: int, message: dict[str, Any], content: Any, seconds: float | None) -> None:
    thought = None
    for name in REASONING_FIELDS:
        reasoning = message.get(name)
        if reasoning and thought is None:
            thought = reasoning
            builder.add("think", text_of(reasoning, number), number, seconds)
        elif reasoning and reasoning != thought:  # often the same twice, under an old and a new name
            builder.keep(number, {name: reasoning})
    refusal = message.get("refusal")
    if content is not None:
        text = text_of(content, number)
        # An empty text is something said only where nothing else was.
        if text or not (refusal or has_calls(message)):
            builder.answer(text, number, seconds)
    if refusal:
        builder.add("answer", text_of(refusal, number), number, seconds)
    add_calls(builder, number, message, seconds)


def has_calls(message: dict[str, Any]) -> bool:
    """The message has tool calls, in the field of today or the older one."""
    return bool(message.get("tool_calls") or message.get("function_call"))


def add_calls(builder: Builder, number: int, message: dict[str, Any], seconds: float | None) -> None:
    """Add the tool calls of a message, if it has any. Raises Rejected."""
    calls, function = message.get("tool_calls"), message.get("function_call")
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
