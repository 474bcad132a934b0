"""ShareGPT: ``conversations`` of ``from`` and ``value``, and sometimes a ``system`` text beside them."""

from __future__ import annotations

from typing import Any

from pipeline.errors import Reason, Rejected
from pipeline.read.conversation import Conversation
from pipeline.read.decode import decode
from pipeline.read.formats.build import Builder
from pipeline.read.formats.fields import (
    TIME_FIELDS,
    add_system,
    first_message,
    keep_rest,
    message_list,
    recorded_result,
    seconds_of,
    take_messages,
    text_of,
)

# Tuples: a role that is no string, a list say, is in none of them; a set would raise.
_USER = ("human", "user")
_ANSWER = ("gpt", "assistant", "chatgpt", "bing", "bard")
_RESULT = ("observation", "tool")
_KNOWN = frozenset({"from", "value", *TIME_FIELDS})
_KNOWN_OF_RESULTS = _KNOWN | {"tool_call_id", "name"}
KNOWN_ROLES = "human, user, gpt, assistant, chatgpt, bing, bard, system, function_call, observation, tool"


def matches(record: Any, field: str | None = None) -> bool:
    """The first message has ``from`` and ``value``."""
    message = first_message(record, field)
    return message is not None and "from" in message and "value" in message


def read(record: Any, field: str | None = None) -> Conversation:
    """Read one record. A ``system`` text of the record is message 0. Raises Rejected."""
    messages, meta = take_messages(record, field)
    builder = Builder()
    system = add_system(builder, meta, ("system", "system_prompt"))
    if system is not None:
        del meta[system]
    for number, message in enumerate(message_list(messages), 0 if system is None else 1):
        role = message.get("from")
        value = message.get("value")
        seconds = seconds_of(message) if len(message) > 2 else None
        before = len(builder.parts)
        known = _KNOWN
        if role in _USER:
            builder.add("user", text_of(value, number), number, seconds)
        elif role in _ANSWER:
            builder.answer(text_of(value, number), number, seconds)
        elif role == "system":
            builder.add("system", text_of(value, number), number, seconds)
        elif role == "function_call":
            _add_calls(builder, value, number, seconds)
        elif role in _RESULT:
            known = _KNOWN_OF_RESULTS
            text = recorded_result(message, "value", number)
            builder.result(text, number, seconds, message.get("tool_call_id"), message.get("name"))
        else:
            raise Rejected(Reason.UNKNOWN_ROLE, f"message {number}: role {role!r} is not known; known: {KNOWN_ROLES}")
        if not message.keys() <= known:
            keep_rest(builder, number, message, known, before)
    return builder.conversation(meta)


def _add_calls(builder: Builder, value: Any, number: int, seconds: float | None) -> None:
    """A call, or a list of calls, written as JSON in the value."""
    if isinstance(value, str):
        try:
            value = decode(value.encode())
        except Rejected as error:
            raise Rejected(
                Reason.UNSUPPORTED_CONTENT, f"message {number}: the function call is not JSON: {error.message}"
            ) from None
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict):
            raise Rejected(Reason.UNSUPPORTED_CONTENT, f"message {number}: the function call is not an object")
        builder.call(call.get("name"), call.get("arguments", {}), number, seconds, call.get("id"))
