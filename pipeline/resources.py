"""Where the files that travel with the package are: schemas, layouts, recipes, prompts.

In a checkout they stand beside ``pipeline/``; in an installed wheel, inside it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pipeline.errors import UserError

_PACKAGE = Path(__file__).parent


@cache
def folder(name: str) -> Path:
    """The folder ``schemas`` or ``prompts``, wherever this installation keeps it."""
    for candidate in (_PACKAGE / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"{name}/ is missing from this installation of pipeline")


def shipped(kind: str) -> dict[str, Path]:
    """Shipped YAML files of one kind (``layouts`` or ``recipes``) by name."""
    return {path.stem: path for path in sorted((folder("schemas") / kind).glob("*.yaml"))}


def find_yaml(kind: str, given: str, base: Path | None = None) -> Path:
    """A shipped file's name, or the path of a user's own file (relative to ``base`` first, where one is given)."""
    known = shipped(kind)
    if given in known:
        return known[given]
    candidates = [Path(given)] if base is None else [base / given, Path(given)]
    for path in candidates:
        if path.is_file():
            return path
    if given.endswith((".yaml", ".yml")) or "/" in given:
        looked = " or ".join(dict.fromkeys(str(path.parent) for path in candidates))
        raise UserError(f"{given}: no such file in {looked}; shipped {kind} are {', '.join(known)}")
    raise UserError(f"no {kind[:-1]} named '{given}': shipped are {', '.join(known)}; or give the path of a YAML file")
