"""Corpus text on its way through a template: a stand-in holds its place until the template is done.

Blocks, macros and ``join`` turn what they hold into strings, which any filter may cut and change: `replace` could take the
escapes out of a fenced text, a slice could end it unseen. So the fenced text never is in such a string. ``{{ text }}``
writes a stand-in of the same length, made of characters that are no characters (U+FDD0 to U+FDEF), and the text takes its
place when everything else is final. A stand-in may be moved, repeated, indented; one that has been cut, changed or dropped
makes the prompt an error. A text stands in a prompt whole, as it was fenced, or there is no prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from jinja2 import pass_context
from jinja2.runtime import Context

from pipeline.teach.data import Text, fenced, revealed

#: A stand-in: where it begins, its number, and what makes it as long as its text.
_BEGIN, _DIGITS, _FILL = "\ufdd0", [chr(point) for point in range(0xFDD2, 0xFDF0)], "\ufdd1"

#: A stand-in, or what is left of one.
_STAND_IN = re.compile("\ufdd0[\ufdd1-\ufdef]*|[\ufdd1-\ufdef]+")


class Insertions:
    """What one rendering has inserted."""

    def __init__(self) -> None:
        #: Stand-in to fenced text and the template that inserts it.
        self._texts: dict[str, tuple[str, str]] = {}

    def insert(self, text: str, template: str) -> str:
        """The stand-in for ``text``, fenced; no two are the same."""
        own = fenced(text)
        stand_in = (_BEGIN + _digits(len(self._texts))).ljust(len(own), _FILL)
        self._texts[stand_in] = (own, template)
        return stand_in

    def complete(self, made: str, template: str) -> str:
        """What ``template`` has made, with every text in its place.

        Raises TypeError, naming the template that inserted it, for a text of which the stand-in is not there any more, or
        not as it was.
        """
        missing = dict(self._texts)
        broken = False

        def put(match: re.Match[str]) -> str:
            nonlocal broken
            missing.pop(match[0], None)
            own, _ = self._texts.get(match[0], ("", ""))
            broken = broken or not own
            return own

        completed = _STAND_IN.sub(put, made)
        if missing or broken:
            where = next((inserting for _, inserting in missing.values()), template)
            raise TypeError(
                f"corpus text that {where} inserts does not stand whole in the prompt: after a block, a macro or `join`, "
                f"something has cut, changed or left it out; write {{{{ text }}}} only where it is to stand"
            )
        return completed


def _digits(number: int) -> str:
    rest, last = divmod(number, len(_DIGITS))
    return (_digits(rest) if rest else "") + _DIGITS[last]


_INSERTIONS: ContextVar[Insertions] = ContextVar("_INSERTIONS")


def rendered(render: Callable[[], str], template: str) -> str:
    """What ``render`` makes of ``template``, with corpus texts in their places. Raises what it and ``complete`` raise."""
    insertions = Insertions()
    token = _INSERTIONS.set(insertions)
    try:
        return insertions.complete(render(), template)
    finally:
        _INSERTIONS.reset(token)


@pass_context  # also says that nothing may be inserted while a template is compiled
def inserted(context: Context, value: Any) -> Any:
    """What ``{{ value }}`` writes. Raises TypeError for what has no one way to be written."""
    if isinstance(value, Text):
        return _INSERTIONS.get().insert(revealed(value), context.name or "?")
    if value is None or isinstance(value, list | dict | tuple):
        raise TypeError(f"a {type(value).__name__} cannot be inserted: insert its elements")
    return value


@pass_context
def join(context: Context, values: Iterable[Any], separator: str = "") -> str:
    """The filter of that name, for corpus text too: each is fenced."""
    return str(separator).join([str(inserted(context, value)) for value in values])


def data(value: Any) -> Text:
    """The filter of that name: says in a template that something is fenced, as corpus text is anyway."""
    if isinstance(value, Text):
        return value
    if not isinstance(value, str):
        raise TypeError(f"`data` is for text, not for a {type(value).__name__}")
    if _STAND_IN.search(value):
        raise TypeError("`data`: this block, macro or joined text holds corpus text, which is fenced already")
    return Text(value)
