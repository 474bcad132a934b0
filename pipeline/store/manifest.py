"""The manifest: what a dataset is, and which shards it has (DESIGN §6).

Nothing in here may differ between two runs that ought to give the same bytes. Reading it needs the standard library
alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.store.counts import Counts
from pipeline.store.format import FORMAT_VERSION, MANIFEST


@dataclass(frozen=True, slots=True)
class File:
    """A file of the dataset besides the grids."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """The records of a shard: a run of one input file."""

    file: str
    first: int
    records: int


@dataclass(frozen=True, slots=True)
class Shard:
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


@dataclass(frozen=True, slots=True)
class Input:
    """One input file."""

    path: str
    bytes: int
    sha256: str
    records: int


@dataclass(frozen=True, slots=True)
class TokenizerEntry:
    """What the manifest says of the tokenizer."""

    name: str
    source_sha256: str
    sha256: str
    vocab_size: int
    silence_id: int
    end_id: int | None
    #: The tokens that clock streams say, by stream.
    tick_ids: dict[str, int]


@dataclass(frozen=True, slots=True)
class Teacher:
    """The model that the plans come from."""

    model: str
    revision: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """``dataset.json``."""

    format_version: int
    layout: dict[str, Any]
    recipe: dict[str, Any]
    tokenizer: TokenizerEntry
    fingerprint: str
    #: The fingerprint of the dataset whose plans were scheduled again, if any were.
    plans: str | None
    #: None where a rule made the plans.
    teacher: Teacher | None
    inputs: list[Input]
    shards: list[Shard]
    counts: Counts
    quarantine_reasons: dict[str, int]
    software: dict[str, str]

    def encode(self) -> bytes:
        """The manifest's bytes, checked against its schema."""
        from pipeline import schema

        document = asdict(self)
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
    try:
        from pipeline import schema
    except ImportError:  # a machine that only trains has no schema library; there the types below check the keys
        pass
    else:
        schema.check("manifest", document, where)
    try:
        return _typed(document)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: not a manifest: {error}") from None


def _typed(document: dict[str, Any]) -> Manifest:
    return Manifest(
        **document
        | {
            "tokenizer": TokenizerEntry(**document["tokenizer"]),
            "teacher": None if document["teacher"] is None else Teacher(**document["teacher"]),
            "inputs": [Input(**entry) for entry in document["inputs"]],
            "shards": [_shard(entry) for entry in document["shards"]],
            "counts": Counts(**document["counts"]),
        }
    )


def _shard(entry: dict[str, Any]) -> Shard:
    quarantine = entry["quarantine"]
    return Shard(
        **entry
        | {
            "plans": File(**entry["plans"]),
            "quarantine": None if quarantine is None else File(**quarantine),
            "source": Source(**entry["source"]),
            "counts": Counts(**entry["counts"]),
        }
    )
