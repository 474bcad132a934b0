"""The dataset's format: its version, its files' names, its Parquet schema (docs/format.md)."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

#: Raised whenever the same input would give other bytes, or a reader has to know more.
FORMAT_VERSION = 1

MANIFEST = "dataset.json"
TOKENIZER = "tokenizer.json"
RUN = "run.json"
WORK = "_work"
#: Which run is under way; gone when the dataset is finished.
IDENTITY = f"{WORK}/identity.json"

SPAN = pa.struct(
    [
        pa.field("stream", pa.int16(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("tokens", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
    ]
)
PART = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("message", pa.int32(), nullable=False),
        pa.field("reply_to", pa.int32(), nullable=False),
    ]
)
SOURCE = pa.struct(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("record", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("num_rows", pa.int32(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("spans", pa.list_(pa.field("element", SPAN, nullable=False)), nullable=False),
        pa.field("parts", pa.list_(pa.field("element", PART, nullable=False)), nullable=False),
        pa.field("source", SOURCE, nullable=False),
        pa.field("meta", pa.string(), nullable=False),
    ]
)


def data_path(shard: int) -> str:
    """Where a shard's grids are, relative to the dataset."""
    return f"data/part-{shard:05d}.parquet"


def plans_path(shard: int) -> str:
    """Where a shard's plans are, relative to the dataset."""
    return f"plans/part-{shard:05d}.jsonl.zst"


def quarantine_path(shard: int) -> str:
    """Where a shard's rejected records are, relative to the dataset; absent where there are none."""
    return f"quarantine/part-{shard:05d}.jsonl"


def schema_with_metadata(layout: dict[str, Any], tokenizer_sha256: str) -> pa.Schema:
    """The schema with what a lone shard needs to explain itself. Keys are sorted: their order is in the bytes."""
    return SCHEMA.with_metadata(
        {
            "pipeline.format_version": str(FORMAT_VERSION),
            "pipeline.layout": json.dumps(layout, ensure_ascii=False, sort_keys=True, separators=(",", ":")),
            "pipeline.tokenizer_sha256": tokenizer_sha256,
        }
    )
