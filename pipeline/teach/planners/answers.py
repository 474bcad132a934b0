"""Answers in JSON, read strictly. What is wrong is said in words for the model that gave the answer."""

from __future__ import annotations

from typing import TypeVar

import msgspec

Value = TypeVar("Value")


def read_json(text: str, kind: type[Value]) -> Value:
    """The answer as ``kind``. Raises ValueError: no JSON, another shape, text that is no Unicode."""
    try:
        return msgspec.json.decode(text.encode(), type=kind)
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate)") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except msgspec.ValidationError as error:
        raise ValueError(f"wrong shape: {error}") from None
    except msgspec.DecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
