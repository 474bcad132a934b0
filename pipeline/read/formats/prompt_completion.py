"""A prompt and what was answered, under one of the usual pairs of names."""

from __future__ import annotations

from typing import Any

from pipeline.errors import Reason, Rejected
from pipeline.read.conversation import Conversation
from pipeline.read.formats import openai
from pipeline.read.formats.build import Builder
from pipeline.read.formats.fields import add_system, field_text, message_list

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("instruction", "response"),
    ("query", "response"),
)


def _pair(record: Any, field: str | None) -> tuple[str, str] | None:
    if field is None and isinstance(record, dict):
        for pair in PAIRS:
            if pair[0] in record and pair[1] in record:
                return pair
    return None


def matches(record: Any, field: str | None = None) -> bool:
    """The record has both fields of a known pair; never where a field for messages is named."""
    return _pair(record, field) is not None


def read(record: Any, field: str | None = None) -> Conversation:
    """Read one record; a ``system`` or ``system_prompt`` text beside the pair comes first. Raises Rejected.

    Either side may be a list of OpenAI messages.
    """
    pair = _pair(record, field)
    if pair is None:
        known = "; ".join(f"{prompt} and {answer}" for prompt, answer in PAIRS)
        raise Rejected(Reason.NO_MESSAGES, f"the record has none of the pairs: {known}")
    prompt, answer = pair
    builder = Builder()
    taken = {prompt, answer}
    number = 0
    if len(record) > 2:
        system = add_system(builder, record, ("system", "system_prompt"))
        if system is not None:
            taken.add(system)
            number = 1
    if isinstance(record[prompt], list):
        number = _add_messages(builder, record[prompt], number)
    else:
        builder.add("user", field_text(record, prompt), number)
        number += 1
    if isinstance(record[answer], list):
        _add_messages(builder, record[answer], number)
    else:
        builder.answer(field_text(record, answer), number)
    return builder.conversation({name: value for name, value in record.items() if name not in taken})


def _add_messages(builder: Builder, messages: Any, number: int) -> int:
    for number, message in enumerate(message_list(messages), number):  # noqa: B020 -- continues the numbering
        openai.add_message(builder, number, message)
    return number + 1 if messages else number
