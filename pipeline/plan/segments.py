"""Cutting a text into sentences.

A unit owns the whitespace before it, never the whitespace after it: then a boundary between units falls on a boundary
between tokens almost always, and no unit contains the start of the next. Units, joined, are the text.
"""

from __future__ import annotations

import re

# Where a sentence may end: at a line break; after . ! ? … and closing quotes or brackets, if whitespace follows; after the
# full stops of scripts that put no space between sentences. The expressions start with one set of characters, so that
# ordinary text is skipped quickly, and no run in them is unbounded and tried twice, so that the time is linear.
_ASCII = re.compile(r"""[.!?\n](?:(?<=\n)\s*+|[.!?"')\]]{0,9}+(?=\s))""")
_ANY = re.compile(r"""[.!?…؟।。！？\n](?:(?<=\n)\s*+|(?<=[。！？])[。！？」』”’）]*+|[.!?…؟।"'”’»)\]]{0,9}+(?=\s))""")

_ABBREVIATIONS = (" Mr", " Mrs", " Ms", " Dr", " Prof", " St", " vs", " etc", " cf", " No", "e.g", "i.e")
#: Their last two characters: what nearly every full stop is told by.
_TAILS = frozenset(abbreviation[-2:] for abbreviation in _ABBREVIATIONS)


def sentences(text: str) -> list[int]:
    """The ends of the sentences of ``text``, in code points, the last one being ``len(text)``; empty for no text.

    >>> text = "One. Two?\\n\\nThree"
    >>> [text[a:b] for a, b in zip([0, *sentences(text)], sentences(text))]
    ['One.', ' Two?', '\\n\\nThree']
    """
    ends: list[int] = []
    last = 0  # end of the newest sentence
    for match in (_ASCII if text.isascii() else _ANY).finditer(text):
        begin, end = match.span()
        mark = text[begin]
        if mark == "\n":
            end = begin
            while end > last and text[end - 1].isspace():
                end -= 1
            if end == last:
                continue  # a blank line ends nothing
        elif mark == "." and end == begin + 1 and _ends_no_sentence(text, begin):
            continue
        ends.append(end)
        last = end
    size = len(text)
    if last < size:
        if ends and text[last:].isspace():
            ends.pop()  # whitespace at the very end opens nothing: it belongs to the last sentence
        ends.append(size)
    return ends


def _ends_no_sentence(text: str, dot: int) -> bool:
    """Whether a full stop belongs to an abbreviation, an initial (J. Doe) or a number in a list (1. First)."""
    before = text[dot - 1 : dot]
    if before.islower():
        return text[dot - 2 : dot] in _TAILS and text.endswith(_ABBREVIATIONS, 0, dot)
    if before.isdigit():
        begin = dot - 2 if text[dot - 2 : dot - 1].isdigit() else dot - 1
        return text[max(begin - 8, 0) : begin].rstrip(" \t")[-1:] in ("", "\n")
    return before.isupper() and (dot == 1 or not text[dot - 2].isalnum())
