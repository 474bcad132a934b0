"""Cutting a text into sentences.

A unit owns the whitespace before it, never the whitespace after it: then a boundary between units falls on a boundary
between tokens almost always, and no unit contains the start of the next. Units, joined, are the text.
"""

from __future__ import annotations

import re

# Where a sentence may end: after . ! ? … and closing quotes or brackets, if whitespace follows; after the full stops of
# scripts that put no space between sentences; and before a line break. The expression starts with a set of characters
# so that the search skips ordinary text quickly.
_CANDIDATE = re.compile(
    r"""
    [.!?…؟।]+ ["'”’»)\]]* (?=\s)
  | [。！？]+ [」』”’）]*
  | \n \s*
    """,
    re.VERBOSE,
)

_ABBREVIATIONS = (" Mr", " Mrs", " Ms", " Dr", " Prof", " St", " vs", " etc", " cf", " No", "e.g", "i.e")


def sentences(text: str) -> list[int]:
    """The ends of the sentences of ``text``, in code points, the last one being ``len(text)``; empty for no text.

    >>> text = "One. Two?\\n\\nThree"
    >>> [text[a:b] for a, b in zip([0, *sentences(text)], sentences(text))]
    ['One.', ' Two?', '\\n\\nThree']
    """
    if not text:
        return []
    ends: list[int] = []
    last = 0
    for match in _CANDIDATE.finditer(text):
        begin = match.start()
        mark = text[begin]
        if mark == "\n":
            end = begin
            if not text[last:begin].strip():
                continue  # a blank line ends nothing
        else:
            end = match.end()
            if mark == "." and _is_abbreviation(text, begin):
                continue
        ends.append(end)
        last = end
    size = len(text)
    if last < size:
        if ends and text[last:].isspace():
            ends.pop()  # whitespace at the very end opens nothing: it belongs to the last sentence
        ends.append(size)
    return ends


def _is_abbreviation(text: str, dot: int) -> bool:
    """Whether the full stop at ``dot`` belongs to an initial (J. Doe), a short title, or a number in a list (1. First)."""
    if dot == 0:
        return False
    before = text[dot - 1]
    if before.isdigit():
        line = text[max(text.rfind("\n", 0, dot) + 1, dot - 4) : dot].strip()
        return len(line) <= 2 and line.isdigit() and text[max(0, dot - 8) : dot - len(line)].rstrip(" \t")[-1:] in ("", "\n")
    if before.isupper():
        return dot == 1 or not text[dot - 2].isalnum()
    return text.endswith(_ABBREVIATIONS, 0, dot)
