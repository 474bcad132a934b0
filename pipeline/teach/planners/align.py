"""``align``: the recorded answer, cut in sentences, each after the input that it needs. No new text.

One call per turn, several for a long one. The teacher sees the sentences of the turn's system and user parts, numbered, and
those of what the model wrote, thoughts and answers, and says for each of these the last input sentence that it needs. The
whole turn is shown, future included: what comes back are numbers, so nothing of it can get into the text. The calls of a
conversation are one growing text.

Everything else keeps the default edges: calls, results, whatever follows a result of the turn (all of it was read by then),
an answer after the thought before it, the next turn, and text in streams that may not read the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec

from pipeline.errors import UserError
from pipeline.layout import DROP, REJECT, Layout
from pipeline.plan.edges import Edges, spoken_streams
from pipeline.plan.plan import Dependency, Segment
from pipeline.plan.segments import sentences
from pipeline.plan.turns import turn_starts
from pipeline.read.conversation import Part
from pipeline.teach.planners.aligning import Aligner, Alignment, Piece, Written
from pipeline.teach.planners.evidence import Evidence
from pipeline.teach.prompts import Prompt
from pipeline.teach.protocol import Ask

PROMPT = "align"

#: Output segments per call, and numbers for input segments. With three digits on either side an answer would cost more
#: than eight tokens per output segment where a vocabulary writes every character by itself.
MaxSegments = Annotated[int, msgspec.Meta(ge=1, le=99)]
MaxInputs = Annotated[int, msgspec.Meta(ge=1, le=99)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the ``align`` planner."""

    #: The most output sentences that one call asks about; a longer turn takes several calls.
    max_segments: MaxSegments = 64
    #: The most numbers for input sentences; of a longer turn, neighbouring sentences share one.
    max_inputs: MaxInputs = 99


class Planner:
    """Asks once per turn, and paces thoughts and answers by what comes back."""

    def __init__(self, layout: Layout, options: Options, prompt: Prompt) -> None:
        self._layout = layout
        self._spoken = spoken_streams(layout)
        self._stream = {role: (layout.lanes(target) or [target])[0] for role, target in layout.roles.items()}
        self._paced = paced_roles(layout, "think", "answer")
        if not self._paced:
            raise UserError(
                f"planner align: in layout '{layout.name}' neither thoughts nor answers stand in a stream that may read "
                f"what the user says ('{self._stream['user']}'), so nothing can be aligned; "
                f"use another layout, such as chat-think-3, or change its visibility"
            )
        self._aligner = Aligner(prompt, "", options.max_segments, options.max_inputs)
        self.longest = self._aligner.longest

    async def __call__(self, parts: Sequence[Part], ask: Ask) -> list[Segment]:
        edges = Edges(self._spoken)
        align = Alignment(self._aligner, parts, ask)
        starts = turn_starts(parts)
        for first, end in zip(starts, [*starts[1:], len(parts)], strict=True):
            evidence = Evidence(self._layout, edges)
            inputs: list[Piece] = []
            rest = first
            while rest < end and parts[rest].role in ("system", "user"):
                inputs += add_input(edges, evidence, parts[rest], rest, self._stream[parts[rest].role])
                rest += 1
            paced = paced_parts(parts, rest, end, self._paced) if inputs else []
            shown = paced[-1] + 1 if paced else rest
            written = [Written(pieces(parts[i]), i in paced) for i in range(rest, shown)]
            needs = iter(await align(first, shown, inputs, written))
            for index in range(rest, end):
                stream = self._stream[parts[index].role]
                default = edges.waits(parts[index], stream)
                if index in paced:
                    add_paced(edges, evidence, parts[index], index, stream, needs, default)
                else:
                    edges.add(parts[index], index, stream, [len(parts[index].text)], [default])
        return edges.segments


def paced_roles(layout: Layout, *roles: str) -> list[str]:
    """Those of ``roles`` that have a stream which may read what the user says."""
    users = layout.roles["user"]
    if users in (DROP, REJECT):
        return []
    kept = [role for role in roles if layout.roles[role] not in (DROP, REJECT)]
    return [role for role in kept if layout.sees(layout.roles[role], users)]


def add_input(edges: Edges, evidence: Evidence, part: Part, index: int, stream: str) -> list[Piece]:
    """Add a system or user part, sentence by sentence, as input units; their texts."""
    ends = sentences(part.text) or [0]
    added = edges.add(part, index, stream, ends, [edges.waits(part, stream)] + [()] * (len(ends) - 1))
    own = pieces(part)
    if own:  # an empty part has a segment, but nothing to need
        for segment in added:
            evidence.read(stream, segment)
    return own


def add_paced(
    edges: Edges,
    evidence: Evidence,
    part: Part,
    index: int,
    stream: str,
    needs: Iterator[int],
    default: tuple[Dependency, ...],
) -> None:
    """Add a part that the model wrote, each sentence after what it needs; nothing, which was not asked about, needs none."""
    ends = sentences(part.text)
    own = [next(needs) for _ in ends] or [0]
    edges.add(part, index, stream, ends or [0], evidence.follow(stream, own, default), paced=True)


def paced_parts(parts: Sequence[Part], first: int, end: int, roles: Sequence[str]) -> list[int]:
    """The parts of a turn that are paced by its input: of these roles, and before any result."""
    paced: list[int] = []
    for index in range(first, end):
        if parts[index].role == "result":
            break
        if parts[index].role in roles:
            paced.append(index)
    return paced


def pieces(part: Part) -> list[Piece]:
    """A part, sentence by sentence; a call is one piece, and nothing is none."""
    ends = [len(part.text)] if part.role == "call" else sentences(part.text)
    return [Piece(part.role, part.text[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
