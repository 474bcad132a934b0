"""``audit``: a stream that checks the recorded solution while it is written, from a teacher who reads along.

One call after every sentence of the solution (``every``: after every n-th of a part, and its last); calls to tools are a
sentence each. The teacher is shown what is new since its last call, never what is written later
(:mod:`pipeline.teach.causal` checks it), and answers with up to ``notes`` short notes, or passes. The last call, after the
last sentence that the model wrote, must give a verdict: ``Verdict: correct.`` or ``Verdict: incorrect.``, and a reason.
What the auditor's stream may not read is no part of the solution: there is no call after it, and no edge to it.

The conversation itself keeps the default edges; nothing waits for the auditor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from pipeline.engines.protocol import Constraint
from pipeline.errors import Reason, Rejected, UserError
from pipeline.layout import DROP, REJECT, Layout
from pipeline.plan.edges import Edges, spoken_streams
from pipeline.plan.plan import Segment
from pipeline.plan.segments import sentences
from pipeline.read.conversation import Part
from pipeline.teach.causal import Thread
from pipeline.teach.planners.answers import one_line, read_json
from pipeline.teach.planners.remarks import TOKENS_PER_CHARACTER, Characters, Most, Remarks
from pipeline.teach.prompts import Prompt
from pipeline.teach.protocol import Ask

PROMPT = "audit"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the ``audit`` planner."""

    #: The auditor's stream.
    stream: str = "audit"
    #: Sentences of the solution per call.
    every: Annotated[int, msgspec.Meta(ge=1)] = 1
    #: The most notes per call, and the most characters of a note, and of the verdict's reason.
    notes: Most = 2
    characters: Characters = 160


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last word."""

    reason: str
    verdict: Literal["correct", "incorrect"]

    @property
    def text(self) -> str:
        """As it stands in the stream."""
        return f"Verdict: {self.verdict}. {one_line(self.reason)}".rstrip()


class Planner:
    """Default edges, and a stream of notes that follows the solution."""

    def __init__(self, layout: Layout, options: Options, prompt: Prompt) -> None:
        _check_layout(layout, options.stream)
        prompt.check("system.jinja", "notes", "characters")
        prompt.check("written.jinja", "news")
        prompt.check("verdict.jinja", "news")
        self._layout = layout
        self._spoken = spoken_streams(layout)
        self._stream = {role: (layout.lanes(target) or [target])[0] for role, target in layout.roles.items()}
        self._auditor = options.stream
        self._prompt = prompt
        self._every = options.every
        self._remarks = Remarks("notes", options.notes, options.characters)
        self.longest = max(self._remarks.max_tokens, _verdict_tokens(options.characters))

    async def __call__(self, parts: Sequence[Part], ask: Ask) -> list[Segment]:
        edges = Edges(self._spoken)
        limits = {"notes": self._remarks.most, "characters": self._remarks.characters}
        thread = Thread(self._prompt, self._layout, parts, edges, self._auditor, **limits)
        written = [index for index, part in enumerate(parts) if part.role in ("answer", "call")]
        solution = [index for index in written if self._layout.sees(self._auditor, self._stream[parts[index].role])]
        if not solution:
            unseen = f", and stream '{self._auditor}' may not read the calls" if written else ""
            raise Rejected(Reason.NO_OUTPUT, f"there is no answer that could be audited{unseen}")
        for index, part in enumerate(parts):
            stream = self._stream[part.role]
            ends = (sentences(part.text) if part.role == "answer" else []) or [len(part.text)]
            added = edges.add(part, index, stream, ends, [edges.waits(part, stream)] + [()] * (len(ends) - 1))
            if index not in solution:
                continue
            for count, segment in enumerate(added, 1):
                if index == solution[-1] and count == len(added):
                    await self._judge(thread, segment, ask)
                elif part.text and (count % self._every == 0 or count == len(added)):
                    await self._note(thread, segment, ask)
        return edges.segments

    async def _note(self, thread: Thread, written: int, ask: Ask) -> None:
        after = thread.after(written)
        thread.tell("written.jinja", news=thread.news(after))
        remarks = self._remarks
        for text in await thread.ask(
            ask, after, remarks.constraint, remarks.parse, max_tokens=remarks.max_tokens, example=remarks.example
        ):
            thread.say(text, thought=False)

    async def _judge(self, thread: Thread, written: int, ask: Ask) -> None:
        after = thread.after(written)
        thread.tell("verdict.jinja", news=thread.news(after))
        characters = self._remarks.characters
        verdict = await thread.ask(
            ask,
            after,
            Constraint("json", _verdict_schema(characters)),
            lambda text: _parse_verdict(text, characters),
            max_tokens=_verdict_tokens(characters),
            example='{"reason":"…","verdict":"correct"}',
        )
        thread.say(verdict.text, thought=False)


def _check_layout(layout: Layout, name: str) -> None:
    """Raises UserError where the layout has no stream of this name that can follow a solution."""
    internal = [stream.name for stream in layout.streams if stream.kind == "internal"]
    if name not in internal:
        raise UserError(
            f"planner audit: layout '{layout.name}' has no internal stream '{name}' for the auditor; use one that has, "
            f"such as solve-audit-3" + (f", or set stream to one of {', '.join(internal)}" if internal else "")
        )
    taken = [role for role, target in layout.roles.items() if target == name]
    if taken:
        raise UserError(
            f"planner audit: in layout '{layout.name}' stream '{name}' is that of {' and '.join(taken)} parts; "
            f"give the auditor a stream of its own, as solve-audit-3 does"
        )
    for role in ("user", "answer"):
        target = layout.roles[role]
        if target in (DROP, REJECT) or not layout.sees(name, target):
            raise UserError(
                f"planner audit: in layout '{layout.name}' the auditor's stream, '{name}', may not read {role} parts "
                f"('{target}'); let it, under visibility.{name}, or use solve-audit-3"
            )


def _verdict_tokens(characters: int) -> int:
    """No valid verdict is longer, with the same exceptions as for notes (:attr:`Remarks.max_tokens`)."""
    return TOKENS_PER_CHARACTER * characters + 64


def _verdict_schema(characters: int) -> dict[str, object]:
    """The reason comes first: who has given one judges better."""
    return {
        "type": "object",
        "properties": {
            "reason": {"type": "string", "minLength": 1, "maxLength": characters},
            "verdict": {"enum": ["correct", "incorrect"]},
        },
        "required": ["reason", "verdict"],
        "additionalProperties": False,
    }


def _parse_verdict(text: str, characters: int) -> Verdict:
    verdict = read_json(text, Verdict)
    if len(verdict.reason) > characters:
        raise ValueError(f"the reason has {len(verdict.reason)} characters; at most {characters} are allowed")
    return verdict
