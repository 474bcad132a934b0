"""Plans: segments plus the order between them (DESIGN §2, §3). A plan knows no tokenizer.

A plan is stored as one JSON line and can be scheduled again for another tokenizer and another layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from pipeline.errors import Reason, Rejected
from pipeline.layout import Layout
from pipeline.read.conversation import Part

#: ``(d, n)``: all of segment d (n is None), or its first n tokens, must have been said.
Dependency = tuple[int, int | None]


class Segment(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A piece of a part, or generated text, that is never interrupted."""

    stream: str
    #: Index of the part that it is cut from; -1 for generated text.
    part: int
    #: First Unicode code point within the part, and the one after the last.
    begin: int
    end: int
    #: Only for generated segments.
    text: str | None = None
    after: tuple[Dependency, ...] = ()
    #: Rows to wait after every dependency.
    lag: int = 0
    #: First row at which it may start.
    earliest: int = 0


class GivenAnswer(msgspec.Struct, frozen=True, gc=False):
    """An answer that a plan was made from: its key in the answer store, how it was drawn and how it ended."""

    key: str
    temperature: float
    seed: int
    finish_reason: str


class Provenance(msgspec.Struct, frozen=True, gc=False):
    """Where a teacher's plan comes from."""

    planner: str
    #: SHA-256 of the prompt's templates.
    prompt: str
    model: str
    revision: str | None
    #: Of the first attempt at every question; that of the answers is with them.
    temperature: float
    top_p: float
    seed: int
    answers: list[GivenAnswer]


class Plan(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The plan of one conversation: what one line of ``plans/`` holds."""

    id: str
    segments: list[Segment]
    #: None for planners that are rules.
    teacher: Provenance | None = None


class Plans(NamedTuple):
    """Plans by id, and the layout that they were made for."""

    layout: Layout
    #: Of a conversation for which no plan could be made, why.
    by_id: Mapping[str, Plan | Rejected]


def replaces(segments: Sequence[Segment]) -> bool:
    """Whether a plan stands in place of its conversation: it refers to none of its parts, and has text of its own."""
    return bool(segments) and all(segment.part == -1 and segment.text is not None for segment in segments)


def check_plan(
    segments: Sequence[Segment],
    parts: Sequence[Part],
    routes: Mapping[str, Sequence[str]],
    written: Mapping[str, bool],
) -> None:
    """Check a plan that came from outside against the conversation that it is for.

    ``routes`` gives, for a role, the streams that its parts may stand in; ``written`` says for every stream of the layout
    whether the model writes it. Dependencies must point backwards. Every part must be covered from its first code point
    to its last, in order and in one stream, where nothing else is said before it has ended; generated text stands only
    in streams that the model writes. Only a plan that :func:`replaces` the conversation covers no part, and may say what
    the world says.
    Raises :class:`Rejected` (``plan_invalid``) saying which segment is wrong.
    """
    replaced = replaces(segments)
    covered = [0] * len(parts)
    seen: dict[int, str] = {}
    newest: dict[str, int] = {}  # the part that was said last in every stream, -1 for generated text
    for number, segment in enumerate(segments):
        stream, index = segment.stream, segment.part
        if any(not 0 <= d < number for d, _ in segment.after):
            raise _invalid(number, "it waits for a segment that does not come before it in the plan")
        if any(n is not None and n < 0 for _, n in segment.after) or segment.lag < 0 or segment.earliest < 0:
            raise _invalid(number, "a number of tokens or rows is negative")
        before = newest.get(stream, -1)
        newest[stream] = index
        if before >= 0 and before != index and covered[before] != len(parts[before].text):
            raise _invalid(number, f"it interrupts part {before} in stream '{stream}'")
        if index == -1 and segment.text is not None:
            if stream not in written:
                raise _invalid(number, f"the layout has no stream '{stream}'")
            if not written[stream] and not replaced:
                raise _invalid(number, f"text is generated in stream '{stream}', which the world writes")
            continue
        if not 0 <= index < len(parts):
            raise _invalid(number, f"the conversation has no part {index}")
        if segment.text is not None:
            raise _invalid(number, "it has a text of its own, but is a piece of a part")
        part = parts[index]
        if stream not in routes[part.role] or seen.get(index, stream) != stream:
            raise _invalid(number, f"a {part.role} part does not go to stream '{stream}'")
        if index in seen and before != index:
            raise _invalid(number, f"part {index} has ended in stream '{stream}' already")
        seen[index] = stream
        if segment.begin != covered[index] or not segment.begin <= segment.end <= len(part.text):
            raise _invalid(number, f"part {index} is not cut without gaps")
        covered[index] = segment.end
    for index, part in enumerate(parts):
        if not replaced and (index not in seen or covered[index] != len(part.text)):
            raise Rejected(Reason.PLAN_INVALID, f"part {index} is not covered by the plan")


def _invalid(number: int, message: str) -> Rejected:
    return Rejected(Reason.PLAN_INVALID, f"segment {number}: {message}")
