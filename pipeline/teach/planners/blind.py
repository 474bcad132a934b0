"""``blind``: thoughts while reading, from a teacher who has seen no more than what has been read.

One call after every sentence of the user (``every``: after every n-th of a part, and its last) and after every tool result;
system text is read as context, and thought about where a turn has nothing from a user. The teacher is shown what is new
since its last call and answers with up to ``thoughts`` short thoughts, or passes. Calls of a conversation are one growing
list of messages, so an engine with a prefix cache reads every text once.

A thought stands in the stream for thoughts, after the input that it was shown (:mod:`pipeline.teach.causal` checks that
this holds for everything in the prompt). Recorded thoughts keep their place, their order and their default edges in that
stream. The recorded answer follows: by ``rule``, the default edges, after all input and all thoughts; or by ``align``, each
sentence after the input that it needs and the thoughts that were made on that much input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec

from pipeline.errors import UserError
from pipeline.layout import DROP, REJECT, Layout
from pipeline.plan.edges import Edges, spoken_streams
from pipeline.plan.plan import Segment
from pipeline.plan.turns import turn_starts
from pipeline.read.conversation import Part
from pipeline.teach.causal import Thread
from pipeline.teach.planners.align import MaxInputs, MaxSegments, add_input, add_paced, paced_parts, paced_roles, pieces
from pipeline.teach.planners.aligning import Aligner, Alignment, Piece, Written
from pipeline.teach.planners.evidence import Evidence
from pipeline.teach.planners.remarks import Characters, Most, Remarks
from pipeline.teach.prompts import Prompt
from pipeline.teach.protocol import Ask

PROMPT = "blind"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the ``blind`` planner."""

    #: Input sentences per call.
    every: Annotated[int, msgspec.Meta(ge=1)] = 1
    #: The most thoughts per call, and the most characters of each.
    thoughts: Most = 3
    characters: Characters = 160
    #: Where the recorded answer stands.
    answer: Literal["rule", "align"] = "rule"
    #: For ``answer: align``, as there.
    max_segments: MaxSegments = 64
    max_inputs: MaxInputs = 99
    #: The stream for thoughts, where the layout drops recorded ones; else it is theirs.
    stream: str | None = None


class Planner:
    """Thinks with the reader, then lets the recorded answer follow."""

    def __init__(self, layout: Layout, options: Options, prompt: Prompt) -> None:
        self._layout = layout
        self._spoken = spoken_streams(layout)
        self._stream = {role: (layout.lanes(target) or [target])[0] for role, target in layout.roles.items()}
        self._thinking = _stream_for_thoughts(layout, options.stream)
        self._prompt = prompt
        self._every = options.every
        self._remarks = Remarks("thoughts", options.thoughts, options.characters)
        prompt.check("system.jinja", "thoughts", "characters")
        prompt.check("read.jinja", "news")
        self._aligner: Aligner | None = None
        if options.answer == "align":
            if not paced_roles(layout, "answer"):
                raise UserError(
                    f"planner blind, answer: align: in layout '{layout.name}' answers stand in '{self._stream['answer']}', "
                    f"which may not read '{self._stream['user']}'; set answer=rule, or change the layout's visibility"
                )
            self._aligner = Aligner(prompt, "align-", options.max_segments, options.max_inputs)
        self.longest = max(self._remarks.max_tokens, self._aligner.longest if self._aligner else 0)

    async def __call__(self, parts: Sequence[Part], ask: Ask) -> list[Segment]:
        edges = Edges(self._spoken)
        thread = Thread(
            self._prompt,
            self._layout,
            parts,
            edges,
            self._thinking,
            thoughts=self._remarks.most,
            characters=self._remarks.characters,
        )
        align = Alignment(self._aligner, parts, ask) if self._aligner is not None else None
        starts = turn_starts(parts)
        for first, end in zip(starts, [*starts[1:], len(parts)], strict=True):
            await self._turn(parts, first, end, edges, thread, align, ask)
        return edges.segments

    async def _turn(
        self,
        parts: Sequence[Part],
        first: int,
        end: int,
        edges: Edges,
        thread: Thread,
        align: Alignment | None,
        ask: Ask,
    ) -> None:
        evidence = Evidence(self._layout, edges)
        thought_about = "user" if any(part.role == "user" for part in parts[first:end]) else "system"
        inputs: list[Piece] = []
        rest = first
        while rest < end and parts[rest].role in ("system", "user"):
            stream = self._stream[parts[rest].role]
            before = len(inputs)
            inputs += add_input(edges, evidence, parts[rest], rest, stream)
            if parts[rest].role == thought_about and self._layout.sees(self._thinking, stream):
                for unit in range(before, len(inputs)):
                    if (unit + 1 - before) % self._every == 0 or unit + 1 == len(inputs):
                        for number in await self._think(thread, evidence.unit(unit), ask):
                            evidence.thought(self._thinking, number, unit + 1)
            rest += 1

        paced: list[int] = []
        needs: Iterator[int] = iter(())
        if align is not None and inputs and (paced := paced_parts(parts, rest, end, ["answer"])):
            shown = paced[-1] + 1
            written = [Written(pieces(parts[i]), i in paced) for i in range(rest, shown)]
            needs = iter(await align(first, shown, inputs, written))
        for index in range(rest, end):
            part = parts[index]
            stream = self._stream[part.role]
            default = edges.waits(part, stream)
            if index in paced:
                add_paced(edges, evidence, part, index, stream, needs, default)
                continue
            added = edges.add(part, index, stream, [len(part.text)], [default])
            if part.role == "result" and part.text and self._layout.sees(self._thinking, stream):
                await self._think(thread, added[-1], ask)

    async def _think(self, thread: Thread, read: int, ask: Ask) -> list[int]:
        """Ask for thoughts after segment ``read``; the segments that they became."""
        after = thread.after(read)
        thread.tell("read.jinja", news=thread.news(after))
        remarks = self._remarks
        thoughts = await thread.ask(
            ask, after, remarks.constraint, remarks.parse, max_tokens=remarks.max_tokens, example=remarks.example
        )
        return [thread.say(text, thought=True) for text in thoughts]


def _stream_for_thoughts(layout: Layout, given: str | None) -> str:
    """The stream that thoughts are written in. Raises UserError where there is none that reads the user."""
    target = layout.roles["think"]
    dropped = target in (DROP, REJECT)
    name = given or target
    internal = [stream.name for stream in layout.streams if stream.kind == "internal"]
    if given is None and dropped:
        raise UserError(
            f"planner blind: layout '{layout.name}' has no stream for thoughts (roles.think: {target}); "
            f"use one that has, such as chat-think-3"
            + (f", or set stream to one of {', '.join(internal)}" if internal else "")
        )
    if not dropped and name != target:
        raise UserError(
            f"planner blind: stream: recorded thoughts stand in '{target}' of layout '{layout.name}', and new ones stand "
            f"with them; leave stream out, or use a layout that drops recorded thoughts"
        )
    if name not in internal:
        raise UserError(
            f"planner blind: '{name}' is not an internal stream of layout '{layout.name}'; "
            f"internal are {', '.join(internal) or 'none'}; use a layout that has one, such as chat-think-3"
        )
    users = layout.roles["user"]
    if users in (DROP, REJECT) or not layout.sees(name, users):
        raise UserError(
            f"planner blind: in layout '{layout.name}' the stream for thoughts, '{name}', may not read what the user says "
            f"('{users}'), so there is nothing to think about; let it, under visibility.{name}, or use chat-think-3"
        )
    return name
