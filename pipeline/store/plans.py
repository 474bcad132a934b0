"""Stored plans, read back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import zstandard

from pipeline import schema
from pipeline.errors import UserError
from pipeline.plan.plan import Plan
from pipeline.store.manifest import Manifest, Shard
from pipeline.store.place import Place


class StoredPlans(NamedTuple):
    """The plans of a finished dataset."""

    place: Place
    shards: list[Shard]
    fingerprint: str

    @staticmethod
    def open(place: Place, made: Manifest) -> StoredPlans:
        """The plans of the dataset at ``place``."""
        return StoredPlans(place, made.shards, made.fingerprint)

    def of(self, file: str, first: int, count: int) -> dict[str, Plan]:
        """The plans of ``count`` records of an input file from number ``first`` on, by id."""
        plans: dict[str, Plan] = {}
        for shard in self.shards:
            source = shard.source
            if source.file == file and source.first < first + count and first < source.first + source.records:
                plans.update((plan.id, plan) for plan in read_plans(self.place, shard.plans.path))
        return plans


def unpack(data: bytes) -> bytes:
    """The lines of a plan file. Raises ``zstandard.ZstdError``, also where the end is missing."""
    lines = b""
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        lines += frame.decompress(data)
        if not frame.eof:
            raise zstandard.ZstdError("the end is missing")
        data = frame.unused_data
    return lines


def read_plans(place: Place, path: str) -> Iterator[Plan]:
    """The plans of one shard, each line checked against its schema. Raises :class:`UserError` naming file and line."""
    data = place.get(path)
    where = place.path(path)
    if data is None:
        raise UserError(f"{where}: missing")
    valid = schema.validator("plan")
    try:
        for number, line in enumerate(unpack(data).splitlines()):
            document = msgspec.json.decode(line)
            if not valid.is_valid(document):
                raise UserError(f"{where}: line {number + 1}: " + "; ".join(schema.problems("plan", document)))
            yield msgspec.convert(document, Plan)
    except (zstandard.ZstdError, msgspec.DecodeError) as error:
        raise UserError(f"{where}: not readable: {error}") from None
