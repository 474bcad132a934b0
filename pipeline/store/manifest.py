"""The manifest and what it is made of: shard commits, inputs, the fingerprint (DESIGN §6).

Nothing in here may differ between two runs that ought to give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import reduce
from importlib.metadata import version
from operator import add
from typing import Any

import msgspec

from pipeline import schema
from pipeline.errors import UserError
from pipeline.grid.ids import TokenIds
from pipeline.grid.tokens import Tokenizer
from pipeline.recipe import Recipe
from pipeline.store.counts import Counts
from pipeline.store.format import FORMAT_VERSION, MANIFEST


class File(msgspec.Struct, frozen=True):
    """A file of the dataset besides the grids."""

    path: str
    bytes: int
    sha256: str


class Source(msgspec.Struct, frozen=True):
    """The records of a shard: a run of one input file."""

    file: str
    first: int
    records: int


class Shard(msgspec.Struct, frozen=True):
    """One finished shard, as its commit and the manifest hold it."""

    path: str
    rows: int
    bytes: int
    sha256: str
    tokens: int
    plans: File
    quarantine: File | None
    source: Source
    counts: Counts

    def files(self) -> list[tuple[str, str]]:
        """The files of this shard, each with its hash."""
        others = [self.plans] if self.quarantine is None else [self.plans, self.quarantine]
        return [(self.path, self.sha256), *[(file.path, file.sha256) for file in others]]


class Input(msgspec.Struct, frozen=True):
    """One input file."""

    path: str
    bytes: int
    sha256: str
    records: int


class TokenizerEntry(msgspec.Struct, frozen=True):
    """What the manifest says of the tokenizer."""

    name: str
    source_sha256: str
    sha256: str
    vocab_size: int
    silence_id: int
    end_id: int | None


class Manifest(msgspec.Struct, frozen=True):
    """``dataset.json``."""

    format_version: int
    layout: dict[str, Any]
    recipe: dict[str, Any]
    tokenizer: TokenizerEntry
    fingerprint: str
    #: The fingerprint of the dataset whose plans were scheduled again, if any were.
    plans: str | None
    inputs: list[Input]
    shards: list[Shard]
    counts: Counts
    quarantine_reasons: dict[str, int]
    software: dict[str, str]

    def encode(self) -> bytes:
        """The manifest's bytes, checked against its schema."""
        document = msgspec.to_builtins(self)
        schema.check("manifest", document, MANIFEST)
        return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()


def decode(data: bytes, where: str) -> Manifest:
    """Read a manifest. Raises :class:`UserError` naming ``where`` and what is wrong."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON: {error}") from None
    found = document.get("format_version") if isinstance(document, dict) else None
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise UserError(f"{where}: format version {found}, but this program knows {FORMAT_VERSION}; update pipeline")
    schema.check("manifest", document, where)
    return msgspec.convert(document, Manifest)


def identity(
    recipe: Recipe, tokenizer: Tokenizer, inputs: Sequence[tuple[str, str]], plans: str | None
) -> dict[str, Any]:
    """Everything that decides what the bytes are. ``inputs``: names and hashes of the input files."""
    return {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.to_dict(),
        "layout": recipe.layout.to_dict(),
        "tokenizer": {"name": tokenizer.name, "source_sha256": tokenizer.source_sha256},
        "plans": plans,
        "inputs": dict(inputs),
    }


def identity_of(manifest: Manifest) -> dict[str, Any]:
    """The identity of a finished dataset."""
    return {
        "format_version": manifest.format_version,
        "recipe": manifest.recipe,
        "layout": manifest.layout,
        "tokenizer": {"name": manifest.tokenizer.name, "source_sha256": manifest.tokenizer.source_sha256},
        "plans": manifest.plans,
        "inputs": {entry.path: entry.sha256 for entry in manifest.inputs},
    }


def fingerprint(of: dict[str, Any]) -> str:
    """The hash of an identity."""
    text = json.dumps(of, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Any, now: Any, key: str = "") -> list[str]:
    """What differs between two identities, one line each."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for name in sorted(before.keys() | now.keys())
            for line in differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
        ]
    if before == now:
        return []
    if isinstance(before, list) or isinstance(now, list):
        return [f"{key} differ"]
    return [f"{key}: {_short(before)} there, {_short(now)} now"]


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"


def build_manifest(
    recipe: Recipe,
    tokenizer: Tokenizer,
    ids: TokenIds,
    plans: str | None,
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
            tokenizer.name, tokenizer.source_sha256, tokenizer.sha256, tokenizer.vocab_size, ids.silence_id, ids.end_id
        ),
        fingerprint=fingerprint(identity(recipe, tokenizer, [(i.path, i.sha256) for i in inputs], plans)),
        plans=plans,
        inputs=list(inputs),
        shards=list(shards),
        counts=counts,
        quarantine_reasons=counts.quarantine_reasons,
        software={name: version(name) for name in ("numpy", "pyarrow", "tokenizers", "zstandard")},
    )
