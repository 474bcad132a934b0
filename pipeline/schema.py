"""JSON Schemas, and their errors in words.

Everything that is written or read (layouts, recipes, manifests, plan lines, quarantine lines) is checked against a
schema in ``schemas/``. Validation is done by the ``jsonschema-rs`` library.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

from pipeline.errors import UserError
from pipeline.resources import folder


@cache
def load(kind: str) -> dict[str, Any]:
    """The schema of one kind of document, e.g. ``layout``."""
    schema: dict[str, Any] = json.loads((folder("schemas") / f"{kind}.schema.json").read_text(encoding="utf-8"))
    return schema


@cache
def validator(kind: str) -> Any:
    """A compiled validator for one kind of document; a few microseconds per small document."""
    return jsonschema_rs.validator_for(load(kind))


def problems(kind: str, document: Any) -> list[str]:
    """What is wrong with a document, one line each: the key, the fault, and what would be right."""
    return [_in_words(kind, error) for error in validator(kind).iter_errors(document)]


def check(kind: str, document: Any, where: str) -> None:
    """Raise :class:`UserError` naming ``where``, the keys and the remedies, unless the document is valid."""
    found = problems(kind, document)
    if found:
        raise UserError("\n".join(f"{where}: {problem}" for problem in found))


def load_yaml(kind: str, path: Path) -> dict[str, Any]:
    """Read a YAML file of one kind and check it."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: a {kind} is a mapping of keys to values")
    check(kind, document, str(path))
    return document


def _in_words(kind: str, error: Any) -> str:
    rule: Any = load(kind)
    for step in error.schema_path[:-1]:
        rule = rule[step]
    fault, hint = error.message, rule.get("description", "") if isinstance(rule, dict) else ""
    if error.kind.name == "additionalProperties":
        known = list(rule["properties"])
        near = [n for key in error.kind.unexpected for n in difflib.get_close_matches(key, known, 1)]
        fault = f"unknown key {', '.join(error.kind.unexpected)}"
        hint = (f"did you mean {', '.join(near)}? " if near else "") + "known keys: " + (", ".join(known) or "none")
    elif error.kind.name == "enum":
        known = [str(value) for value in error.kind.options]
        near = difflib.get_close_matches(str(error.instance), known, 1)
        fault = f"{json.dumps(error.instance, ensure_ascii=False)} is none of {', '.join(known)}"
        hint = f"did you mean {near[0]}?" if near else hint
    elif error.kind.name in ("anyOf", "oneOf"):
        fault = f"{json.dumps(error.instance, ensure_ascii=False)} does not fit"
    return f"{key_path(error.instance_path)}: {fault}" + (f" ({hint})" if hint else "")


def key_path(path: Sequence[str | int]) -> str:
    """``['streams', 2, 'kind']`` as ``streams[2].kind``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else (f".{step}" if text else step)
    return text or "(top level)"
