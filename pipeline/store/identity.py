"""What decides the bytes of a dataset: its identity, the fingerprint of that, and how two identities differ.

Not in it: workers, Ray, the place of the output, how a tokenizer's file is called, and descriptions in words.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from importlib.metadata import version
from operator import add
from typing import Any

from pipeline import __version__
from pipeline.grid.ids import TokenIds
from pipeline.grid.tokens import Tokenizer
from pipeline.recipe import Recipe
from pipeline.store.counts import Counts
from pipeline.store.format import FORMAT_VERSION
from pipeline.store.manifest import Input, Manifest, Shard, Teacher, TokenizerEntry


def identity(
    recipe: Recipe,
    tokenizer: Tokenizer,
    inputs: Sequence[tuple[str, str]],
    plans: str | None,
    teacher: Teacher | None,
) -> dict[str, Any]:
    """Everything that decides what the bytes are. ``inputs``: names and hashes of the input files."""
    return {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.to_dict(),
        "layout": recipe.layout.to_dict(),
        "tokenizer": tokenizer.source_sha256,
        "plans": plans,
        "teacher": _teacher(teacher),
        "inputs": dict(inputs),
    }


def identity_of(manifest: Manifest) -> dict[str, Any]:
    """The identity of a finished dataset."""
    return {
        "format_version": manifest.format_version,
        "recipe": manifest.recipe,
        "layout": manifest.layout,
        "tokenizer": manifest.tokenizer.source_sha256,
        "plans": manifest.plans,
        "teacher": _teacher(manifest.teacher),
        "inputs": {entry.path: entry.sha256 for entry in manifest.inputs},
    }


def _teacher(teacher: Teacher | None) -> dict[str, Any] | None:
    return None if teacher is None else asdict(teacher)


def fingerprint(of: dict[str, Any]) -> str:
    """The hash of an identity."""
    text = json.dumps(of, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Any, now: Any, key: str = "", sides: tuple[str, str] = ("there", "now")) -> list[str]:
    """What differs between two identities, one line each. ``sides``: how a line names where a value stands."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for name in sorted(before.keys() | now.keys())
            for line in differences(before.get(name), now.get(name), f"{key}.{name}" if key else name, sides)
        ]
    if before == now:
        return []
    if isinstance(before, list) or isinstance(now, list):
        return [f"{key} differ"]
    return [f"{key}: {_short(before)} {sides[0]}, {_short(now)} {sides[1]}"]


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"


def build_manifest(
    recipe: Recipe,
    tokenizer: Tokenizer,
    ids: TokenIds,
    plans: str | None,
    teacher: Teacher | None,
    inputs: Sequence[Input],
    shards: Sequence[Shard],
) -> Manifest:
    """The manifest of a run whose shards are all finished; ``shards`` in the order of their numbers."""
    counts = reduce(add, (shard.counts for shard in shards), Counts())
    return Manifest(
        format_version=FORMAT_VERSION,
        layout=recipe.layout.to_dict(),
        recipe=recipe.to_dict(),
        tokenizer=TokenizerEntry(
            tokenizer.name,
            tokenizer.source_sha256,
            tokenizer.sha256,
            tokenizer.vocab_size,
            ids.silence_id,
            ids.end_id,
            ids.tick_ids,
        ),
        fingerprint=fingerprint(identity(recipe, tokenizer, [(i.path, i.sha256) for i in inputs], plans, teacher)),
        plans=plans,
        teacher=teacher,
        inputs=list(inputs),
        shards=list(shards),
        counts=counts,
        quarantine_reasons=counts.quarantine_reasons,
        software=software(),
    )


def software() -> dict[str, str]:
    """The versions of everything that the bytes depend on."""
    libraries = ("msgspec", "numpy", "pyarrow", "tokenizers", "zstandard")
    major, minor, _ = platform.python_version_tuple()  # a minor version has its own Unicode tables
    return {"pipeline": __version__, "python": f"{major}.{minor}"} | {name: version(name) for name in libraries}
