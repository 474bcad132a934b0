"""Answers in JSON, read strictly. What is wrong is said in words for the model that gave the answer."""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

Value = TypeVar("Value")


def read_json(text: str, kind: type[Value]) -> Value:
    """The answer as ``kind``; strings may hold control characters, which grammars of engines let through.

    Raises ValueError: no JSON, another shape, text that is no Unicode.
    """
    try:
        value = json.loads(text, strict=False)
        json.dumps(value, ensure_ascii=False).encode()
        return msgspec.convert(value, kind)
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate)") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except msgspec.ValidationError as error:
        raise ValueError(f"wrong shape: {error}") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def one_line(text: str) -> str:
    """Text without control characters, line breaks and blanks around it: a remark is a line."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in text).split())
