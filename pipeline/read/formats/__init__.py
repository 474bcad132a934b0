"""Formats: one module each, with ``matches(record, field)`` and ``read(record, field)``.

A new format is a module and a line here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

from pipeline.read.conversation import Conversation
from pipeline.read.formats import alpaca, harmony, openai, prompt_completion, sharegpt, topic
from pipeline.read.formats.fields import find_messages


class Format(Protocol):
    """What a format's module offers. ``record`` is decoded JSON, ``field`` names the messages, or None."""

    def matches(self, record: Any, field: str | None = None) -> bool:
        """The record looks like this format."""

    def read(self, record: Any, field: str | None = None) -> Conversation:
        """The conversation. Raises Rejected."""


#: By name, the most specific first: the first that matches a record is its format.
REGISTRY: dict[str, Format] = {
    "harmony": harmony,
    "openai": openai,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "prompt-completion": prompt_completion,
    "topic": topic,
}

FORMATS = tuple(REGISTRY)

#: A format whose reader takes the records of another as well: harmony messages without channels are OpenAI's.
ALSO_READS = {"harmony": "openai"}

#: Formats that are half of another's record, such as a prompt without its answer. A file has one of them only if no record
#: shows any other: what is incomplete in a file of conversations has lost something.
ONLY_ALONE = frozenset({"topic"})

#: The format of a file in which no record was recognised.
UNKNOWN = "unknown"

#: A file's format is decided by its first records that parse.
DETECT_RECORDS = 32


def usable_field(record: Any, field: str | None) -> str | None:
    """``field`` where the record has it, else None: then its messages are looked for in the usual places.

    One option can so name the field of some files of an input whose other files need none.
    """
    return None if field is None or find_messages(record, field) is None else field


def format_of(record: Any, field: str | None = None) -> str | None:
    """The format of one decoded record, or None."""
    field = usable_field(record, field)
    return next((name for name, module in REGISTRY.items() if module.matches(record, field)), None)


def detect(records: Iterable[Any], field: str | None = None) -> str | None:
    """The format of a file, from its first decoded records: the one that most of them have, or None.

    A format counts those that it also reads, once it is seen itself. Among equals the more specific one is
    taken. Formats in ``ONLY_ALONE`` are taken where there is no other.
    """
    votes = Counter(name for record in records if (name := format_of(record, field)) is not None)
    if not votes:
        return None
    for name, other in ALSO_READS.items():
        if votes[name]:
            votes[name] += votes[other]
    return max(FORMATS, key=lambda name: (bool(votes[name]) and name not in ONLY_ALONE, votes[name]))
