"""What a prompt may show (DESIGN §3): nothing that the schedule could place later than its answer can know of.

Text that a teacher writes stands in the grid as if the model had written it there, so the teacher may have seen only
what the model will have read by then. A :class:`Thread` is the one way from a plan to a prompt whose answer becomes
text. It takes no strings, only segments by their number, keeps which it has shown, and before every call checks each of
them against the place where the answer will stand:

* it has ended, by the plan's own order, before text at that place can begin: it is an ancestor, through ``after`` and
  the order within streams. Text in stream S is behind every ancestor in another stream by at least the horizon, because
  on the way from one to the other an edge enters S, and the scheduling rule adds the horizon there;
* the layout lets S read its stream.

What fails is never sent: :class:`Rejected` (``causality``). The text is then added to the plan by the same thread, with
the edges that were checked, so no other place can be meant.

Prompts whose answers are not text need none of this: ``align`` shows a whole turn and gets numbers back, ``table`` shows
a seed of which the plan keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from pipeline.engines.protocol import Constraint, Message
from pipeline.errors import Reason, Rejected
from pipeline.layout import Layout
from pipeline.plan.edges import Edges
from pipeline.plan.order import Order as Order
from pipeline.plan.plan import Dependency
from pipeline.read.conversation import Part
from pipeline.teach.data import Plain, harmless
from pipeline.teach.prompts import Prompt
from pipeline.teach.protocol import Ask

Value = TypeVar("Value")


class Shown(NamedTuple):
    """One segment in a prompt. Templates write ``role`` as it is and fence ``text``."""

    #: The role of its part; ``own`` for generated text.
    role: Plain
    text: str
    #: Its number in the plan.
    segment: int


class Thread:
    """The calls of one conversation that become text of one stream, each longer than the one before by a suffix."""

    def __init__(
        self, prompt: Prompt, layout: Layout, parts: Sequence[Part], edges: Edges, stream: str, **limits: int
    ) -> None:
        """``edges`` holds the plan so far, to which text is added in ``stream``; ``limits`` are for ``system.jinja``."""
        self._prompt = prompt
        self._layout = layout
        self._parts = parts
        self._edges = edges
        self._stream = stream
        self._order = Order(edges.segments)
        self._messages = [Message("system", prompt.render("system.jinja", **limits))]
        #: Numbers of all segments that the messages hold.
        self._shown: set[int] = set()
        #: Segments before this one have been looked at by :meth:`news`, but for these.
        self._looked = 0
        self._pending: list[int] = []
        self._after: tuple[Dependency, ...] | None = None

    def show(self, number: int) -> Shown:
        """One segment of the plan, for a prompt."""
        segment = self._edges.segments[number]
        if segment.text is not None:
            return Shown(Plain("own"), segment.text, number)
        part = self._parts[segment.part]
        return Shown(Plain(part.role), part.text[segment.begin : segment.end], number)

    def after(self, read: int) -> tuple[Dependency, ...]:
        """The edges of text that comes after segment ``read``: after it, and after all that was shown before.

        A teacher who has read something knows it from then on, also where a plan lets the later input come first (a user
        who does not wait for a tool).
        """
        edges: list[Dependency] = [(read, None)]
        ended = self._order.ended(self._stream, edges)
        for number in sorted(self._shown, reverse=True):
            if number > ended.get(self._edges.segments[number].stream, -1):
                edges.append((number, None))
                ended = self._order.ended(self._stream, edges)
        return tuple(edges)

    def news(self, after: tuple[Dependency, ...]) -> list[Shown]:
        """What text at this place can know and no message holds yet, in the plan's order; without empty segments."""
        ended = self._order.ended(self._stream, after)
        segments = self._edges.segments
        candidates = [*self._pending, *range(self._looked, len(segments))]
        self._looked = len(segments)
        news: list[Shown] = []
        self._pending = []
        for number in candidates:
            stream = segments[number].stream
            if number in self._shown or not self._layout.sees(self._stream, stream):
                continue
            if number > ended.get(stream, -1):
                self._pending.append(number)
            elif (shown := self.show(number)).text:
                news.append(shown)
        return news

    def tell(self, template: str, **values: Any) -> None:
        """Add a message. Of values, segments (:meth:`show`), numbers and truth values are taken, and lists of those."""
        for value in values.values():
            self._record(value)
        self._messages.append(Message("user", self._prompt.render(template, **values)))

    def _record(self, value: Any) -> None:
        match value:
            case Shown():
                self._shown.add(value.segment)
            case None | bool() | int() | float():
                pass
            case list() | tuple():
                for each in value:
                    self._record(each)
            case _:
                raise TypeError(f"a {type(value).__name__} cannot be told: text is shown by its segment's number")

    async def ask(
        self,
        ask: Ask,
        after: tuple[Dependency, ...],
        constraint: Constraint,
        parse: Callable[[str], Value],
        *,
        max_tokens: int,
        example: str,
    ) -> Value:
        """Ask for text that stands after ``after``; :meth:`say` adds it there.

        Raises :class:`Rejected` (``causality``) where a message holds what cannot be known there, and what ``ask`` raises.
        """
        self._check(after)
        value, text = await ask(self._messages, constraint, parse, max_tokens=max_tokens, example=example)
        self._messages.append(Message("assistant", harmless(text)))
        self._after = after
        return value

    def _check(self, after: tuple[Dependency, ...]) -> None:
        ended = self._order.ended(self._stream, after)
        for number in sorted(self._shown):
            stream = self._edges.segments[number].stream
            if number > ended.get(stream, -1):
                raise _leak(self._stream, after, number, stream, "which may end later")
            if not self._layout.sees(self._stream, stream):
                raise _leak(self._stream, after, number, stream, "which it may not read")

    def say(self, text: str, thought: bool) -> int:
        """Add generated text where the newest call's answer stands; ``thought``: what comes later waits for it."""
        if self._after is None:
            raise RuntimeError("text is added where a call was checked; none has been made yet")
        add = self._edges.add_thought if thought else self._edges.add_note
        number = add(self._stream, text, self._after)
        self._shown.add(number)  # the call's own answer holds it
        return number


def shown_parts(parts: Sequence[Part]) -> list[Mapping[str, Any]]:
    """Whole parts for a prompt whose answer does not become text in their grid."""
    return [{"role": Plain(part.role), "text": part.text} for part in parts]


def _leak(stream: str, after: Sequence[Dependency], number: int, other: str, why: str) -> Rejected:
    place = ", ".join(str(d) for d, _ in after) or "nothing"
    return Rejected(
        Reason.CAUSALITY,
        f"a prompt for text in stream '{stream}' after segment {place} shows segment {number} in stream '{other}', {why}",
    )
