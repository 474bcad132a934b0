"""``table``: a new conversation in many streams, written by the teacher as a table. It replaces the recorded one.

The recorded conversation is a seed, or, with ``seed: topic``, only its first user part is: shown as data, of which the plan
keeps nothing. The answer has one word or short phrase per cell (:mod:`pipeline.teach.planners.tables`). Every cell becomes a
generated segment, and those of a row come after all of the row before: a cell that a tokenizer makes several tokens of takes
as many rows in its stream, and the other streams wait. Rows in which all are silent become rows of silence.

A teacher that writes a table writes all streams of a row at once; that each stream knows the others no earlier than the
schedule lets it is asked of it in the prompt, and cannot be checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from pipeline.engines.protocol import Message
from pipeline.errors import UserError
from pipeline.layout import Layout
from pipeline.plan.plan import Dependency, Segment
from pipeline.read.conversation import Part
from pipeline.teach.causal import shown_parts
from pipeline.teach.data import Plain
from pipeline.teach.planners.tables import table_for
from pipeline.teach.prompts import Prompt
from pipeline.teach.protocol import Ask

PROMPT = "table"

#: Tables are parsed strictly; where the engine knows grammars, nothing else can be written.
NEEDS = ()
WISHES = ("grammar",)

#: Its plans stand in place of the conversation, so a record may hold nothing that a model wrote: a topic is enough.
REPLACES = True

#: Nothing comes between these and the word before them.
_CLOSING = tuple(".,;:!?…)]}”’»%'。，、；：！？）」』")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the ``table`` planner."""

    #: What the teacher is given: the whole recorded conversation, or only the first thing that the user says.
    seed: Literal["conversation", "topic"] = "conversation"
    #: The most rows of the table, and the most characters of a cell.
    rows: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 32
    characters: Annotated[int, msgspec.Meta(ge=2, le=200)] = 20


class Planner:
    """One call per conversation."""

    def __init__(self, layout: Layout, options: Options, prompt: Prompt) -> None:
        _check_layout(layout)
        self._table = table_for(layout, options.rows, options.characters)
        self._whole = options.seed == "conversation"
        prompt.check("system.jinja", "streams", "header", "silence", "opens", "closes", "rows", "characters")
        prompt.check("seed.jinja", "parts", "topic")
        self._prompt = prompt
        table = self._table
        kinds = {stream.name: stream.kind for stream in layout.streams}
        system = prompt.render(
            "system.jinja",
            streams=[{"name": Plain(name), "kind": Plain(kinds[name])} for name in table.streams],
            header=Plain(table.header),
            silence=Plain(table.silence),
            opens=None if table.opens is None else Plain(table.streams[table.opens]),
            closes=Plain(table.streams[table.closes]),
            rows=table.rows,
            characters=table.characters,
        )
        self._system = Message("system", system)
        self.longest = table.max_tokens

    async def __call__(self, parts: Sequence[Part], ask: Ask) -> list[Segment]:
        seed = parts if self._whole else [part for part in parts if part.role == "user"][:1] or parts[:1]
        prompt = self._prompt.render("seed.jinja", parts=shown_parts(seed), topic=not self._whole)
        table = self._table
        rows, _ = await ask(
            [self._system, Message("user", prompt)],
            table.constraint,
            table.parse,
            max_tokens=table.max_tokens,
            example=table.example,
        )
        return segments_of(table.streams, rows)


def segments_of(streams: Sequence[str], rows: Sequence[Sequence[str | None]]) -> list[Segment]:
    """The plan of a table; ``rows[r][c]`` is what stream c says in row r, None for silence."""
    segments: list[Segment] = []
    before: tuple[Dependency, ...] = ()
    spoken: set[str] = set()
    pause = 0
    for row in rows:
        cells = [(stream, cell) for stream, cell in zip(streams, row, strict=True) if cell is not None]
        if not cells:
            pause += bool(segments)  # silence before the first word is none
            continue
        first = len(segments)
        for stream, cell in cells:
            joined = cell if stream not in spoken or cell.startswith(_CLOSING) else f" {cell}"
            segments.append(Segment(stream, -1, 0, 0, joined, before, pause))
            spoken.add(stream)
        before = tuple([(number, None) for number in range(first, len(segments))])
        pause = 0
    return segments


def _check_layout(layout: Layout) -> None:
    streams = [stream for stream in layout.streams if stream.clock is None]
    if not any(stream.kind == "output" for stream in streams):
        raise UserError(
            f"planner table: layout '{layout.name}' has no output stream, in which the conversation could end; "
            f"use a layout that has one, such as cognition-10"
        )
    ended = [stream.name for stream in streams if stream.end]
    if ended:
        raise UserError(
            f"planner table: in layout '{layout.name}' the streams {', '.join(ended)} have end markers, and every cell would "
            f"get one; write 'end: false' for them, or use cognition-10"
        )
    unfit = [stream.name for stream in streams if "|" in stream.name or not stream.name.isprintable()]
    if unfit:
        raise UserError(
            f"planner table: layout '{layout.name}': the stream name {unfit[0]!r} cannot stand in a table; leave out '|'"
        )
