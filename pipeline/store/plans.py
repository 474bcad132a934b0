"""Stored plans, read back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import zstandard

from pipeline import schema
from pipeline.errors import Rejected, UserError
from pipeline.layout import Layout
from pipeline.plan.plan import Plan, Plans
from pipeline.store.manifest import Manifest, Shard
from pipeline.store.place import Place


class StoredPlans(NamedTuple):
    """The plans of a finished dataset."""

    place: Place
    shards: list[Shard]
    fingerprint: str
    layout: Layout

    @staticmethod
    def open(place: Place, made: Manifest) -> StoredPlans:
        """The plans of the dataset at ``place``."""
        return StoredPlans(place, made.shards, made.fingerprint, Layout.from_dict(made.layout))

    def of(self, file: str, first: int, count: int) -> Plans:
        """The plans of ``count`` records of an input file from number ``first`` on."""
        plans: dict[str, Plan | Rejected] = {}
        for shard in self.shards:
            source = shard.source
            if source.file == file and source.first < first + count and first < source.first + source.records:
                plans.update((plan.id, plan) for plan in read_plans(self.place, shard.plans.path))
        return Plans(self.layout, plans)


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


class Fault(NamedTuple):
    """A line of a plan file that is no plan."""

    #: From 1.
    line: int
    message: str


def plans_or_faults(lines: bytes) -> Iterator[Plan | Fault]:
    """For every line a plan that satisfies the schema, or what is wrong with it."""
    valid = schema.validator("plan")
    every = lines.split(b"\n")
    unfinished = every.pop()
    for number, line in enumerate(every, 1):
        try:
            document = msgspec.json.decode(line)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            yield Fault(number, f"no JSON: {error}")
            continue
        if valid.is_valid(document):
            yield msgspec.convert(document, Plan)
        else:
            yield Fault(number, "; ".join(schema.problems("plan", document)))
    if unfinished:
        yield Fault(len(every) + 1, "no line break at its end")


def read_plans(place: Place, path: str) -> Iterator[Plan]:
    """The plans of one shard. Raises :class:`UserError` naming file and line."""
    data = place.get(path)
    where = place.path(path)
    if data is None:
        raise UserError(f"{where}: missing")
    try:
        lines = unpack(data)
    except zstandard.ZstdError as error:
        raise UserError(f"{where}: not readable: {error}") from None
    for plan in plans_or_faults(lines):
        if isinstance(plan, Fault):
            raise UserError(f"{where}: line {plan.line}: {plan.message}")
        yield plan
