"""Validation of a whole dataset: manifest and files here, each shard's contents in the modules beside."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import reduce
from operator import add

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.grid.ids import token_ids
from pipeline.grid.tokens import Tokenizer
from pipeline.layout import Layout
from pipeline.layout_file import load_layout
from pipeline.recipe import Recipe, from_manifest
from pipeline.store import manifest
from pipeline.store.counts import Counts
from pipeline.store.dataset import Columns, Silence, read_manifest
from pipeline.store.format import (
    MANIFEST,
    RUN,
    TOKENIZER,
    data_path,
    plans_path,
    quarantine_path,
    schema_with_metadata,
)
from pipeline.store.identity import fingerprint, identity_of
from pipeline.store.manifest import Manifest, Shard
from pipeline.store.place import Place
from pipeline.store.validate.grids import check_grids
from pipeline.store.validate.plans import check_plans
from pipeline.store.validate.quarantine import check_quarantine
from pipeline.store.validate.report import Code, Findings, Report
from pipeline.store.validate.source import Sources, check_source
from pipeline.store.validate.view import Context, View


def validate(
    location: str,
    strict: bool = False,
    inputs: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check everything that can be derived again from the files at a path or URL.

    ``inputs`` says where inputs are now, by name; those that it does not name are looked for where the run
    read them. An input that is gone and a file that the manifest does not list are notes, and errors where
    ``strict``.
    ``progress`` is called with the shards that are done and the number of all.
    Raises :class:`UserError` where there is no dataset.
    """
    place = Place(str(location))
    data = read_manifest(place)
    findings = Findings()
    try:
        made = manifest.decode(data, MANIFEST)
    except UserError as error:
        for line in str(error).splitlines():
            findings.add(Code.MANIFEST, MANIFEST, found=line.removeprefix(f"{MANIFEST}: "))
        return findings.report(str(location), strict)

    layout = _check_layout(made, findings)
    recipe = _check_recipe(made, findings)
    tokenizer = _check_tokenizer(place, made, layout, findings)
    _check_manifest(made, findings)
    _check_stray(place, made, findings)
    context = None
    if layout is not None and recipe is not None and tokenizer is not None:
        context = Context(made, layout, recipe, tokenizer, findings)
    sources = Sources(made, recipe, _locations(place, inputs, findings), findings)
    for number, shard in enumerate(made.shards):
        _check_shard(place, shard, context, sources, findings)
        findings.checked(shards=1)
        if progress is not None:
            progress(number + 1, len(made.shards))
    sources.finish()
    return findings.report(str(location), strict)


def _check_shard(place: Place, shard: Shard, context: Context | None, sources: Sources, findings: Findings) -> None:
    quarantined = shard.quarantine
    data = _read_file(place, shard.path, shard.bytes, shard.sha256, findings)
    plans = _read_file(place, shard.plans.path, shard.plans.bytes, shard.plans.sha256, findings)
    rejected: bytes | None = b""
    if quarantined is not None:
        rejected = _read_file(place, quarantined.path, quarantined.bytes, quarantined.sha256, findings)
    source = sources.records(shard)  # also where nothing can be compared: shards are read in order
    if context is None:
        return
    lines = check_quarantine(shard, rejected, findings) if rejected is not None else None
    table = _read_table(data, shard, context) if data is not None else None
    if table is None:
        return
    streams = tuple(stream.name for stream in context.layout.streams)
    view = View(
        context, shard, Columns(table.select, table.num_rows, streams, Silence(np.zeros(len(streams), np.int32), ()))
    )
    check_grids(view)
    planned = check_plans(view, plans) if plans is not None else None
    _check_counts(view, planned, lines, findings)
    if source is not None and lines is not None:
        check_source(view, source, lines)


def _read_file(place: Place, path: str, size: int, sha256: str, findings: Findings) -> bytes | None:
    try:
        data = place.get(path)
    except UserError as error:
        findings.add(Code.UNREADABLE, path, found=str(error))
        return None
    if data is None:
        findings.add(Code.MISSING_FILE, path)
        return None
    if len(data) != size:
        findings.add(Code.FILE_BYTES, path, expected=f"{size:,} bytes", found=f"{len(data):,}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        findings.add(Code.FILE_HASH, path, expected=sha256, found=digest)
    return data


def _read_table(data: bytes, shard: Shard, context: Context) -> pa.Table | None:
    """The shard's table, if it can be read and has the right columns."""
    findings, made = context.findings, context.manifest
    try:
        with pq.ParquetFile(io.BytesIO(data), pre_buffer=False) as file:
            table = file.read(use_threads=False)
            table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        findings.add(Code.UNREADABLE, shard.path, found=str(error))
        return None
    wanted = schema_with_metadata(made.layout, made.tokenizer.sha256)
    found = table.schema
    if not found.equals(wanted, check_metadata=False):
        findings.add(Code.SCHEMA, shard.path, expected=_one_line(wanted), found=_one_line(found))
        return None
    for key, value in wanted.metadata.items():
        stored = (found.metadata or {}).get(key)
        if stored != value:
            said = "nothing" if stored is None else stored.decode("utf-8", "replace")
            findings.add(Code.SCHEMA, shard.path, where=key.decode(), expected=value.decode(), found=said)
    return table


def _one_line(found: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in found)


def _check_counts(
    view: View, planned: tuple[int, int] | None, lines: Mapping[int, object] | None, findings: Findings
) -> None:
    """The shard's counts against what its files hold. ``planned``: plans, and how many were truncated."""
    shard, silence = view.shard, view.context.manifest.tokenizer.silence_id
    found = {
        "rows": len(view),
        "tokens": len(view.spans.tokens),
        "converted": len(view.record_ids),
        "silence_in_content": int(np.count_nonzero(view.spans.tokens == silence)),
    }
    if planned is not None:
        found["truncated"] = planned[1]
    if lines is not None:
        found["quarantined"] = len(lines)
    for name, amount in found.items():
        if getattr(shard.counts, name) != amount:
            findings.add(
                Code.COUNTS,
                shard.path,
                where=f"counts.{name}",
                expected=amount,
                found=getattr(shard.counts, name),
            )
    for name in ("rows", "tokens"):
        if getattr(shard, name) != found[name]:
            findings.add(Code.COUNTS, shard.path, where=name, expected=found[name], found=getattr(shard, name))


def _check_layout(made: Manifest, findings: Findings) -> Layout | None:
    try:
        layout = load_layout(made.layout)
    except UserError as error:
        findings.add(Code.LAYOUT, MANIFEST, where="layout", found=str(error))
        return None
    if layout.to_dict() != made.layout:
        findings.add(Code.LAYOUT, MANIFEST, where="layout", expected="every value written out")
    return layout


def _check_recipe(made: Manifest, findings: Findings) -> Recipe | None:
    try:
        recipe = from_manifest(made.recipe, made.layout)
    except UserError as error:
        findings.add(Code.RECIPE, MANIFEST, where="recipe", found=str(error))
        return None
    if recipe.to_dict() != made.recipe:
        findings.add(Code.RECIPE, MANIFEST, where="recipe", expected="every value written out")
    return recipe


def _check_tokenizer(place: Place, made: Manifest, layout: Layout | None, findings: Findings) -> Tokenizer | None:
    entry = made.tokenizer
    data = place.get(TOKENIZER)
    if data is None:
        findings.add(Code.MISSING_FILE, TOKENIZER)
        return None
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        findings.add(Code.TOKENIZER, TOKENIZER, where="sha256", expected=entry.sha256, found=digest)
    try:
        tokenizer = Tokenizer(entry.name, entry.source_sha256, data.decode())
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a malformed file
        findings.add(Code.TOKENIZER, TOKENIZER, found=f"not readable: {error}")
        return None
    if tokenizer.vocab_size != entry.vocab_size:
        findings.add(
            Code.TOKENIZER,
            MANIFEST,
            where="tokenizer.vocab_size",
            expected=tokenizer.vocab_size,
            found=entry.vocab_size,
        )
    if layout is not None:
        try:
            ids = token_ids(layout, tokenizer)
        except UserError as error:
            findings.add(Code.TOKENIZER, TOKENIZER, found=str(error))
            return None
        for name in ids._fields:
            if getattr(ids, name) != getattr(entry, name):
                findings.add(
                    Code.TOKENIZER,
                    MANIFEST,
                    where=f"tokenizer.{name}",
                    expected=getattr(ids, name),
                    found=getattr(entry, name),
                )
    return tokenizer


def _check_manifest(made: Manifest, findings: Findings) -> None:
    """What the manifest says twice, or what follows from itself."""
    expected = fingerprint(identity_of(made))
    if made.fingerprint != expected:
        findings.add(Code.FINGERPRINT, MANIFEST, expected=expected, found=made.fingerprint)
    if made.recipe.get("layout") != made.layout.get("name"):
        findings.add(
            Code.MANIFEST,
            MANIFEST,
            "",
            "recipe.layout",
            expected=made.layout.get("name"),
            found=made.recipe.get("layout"),
        )
    summed = reduce(add, (shard.counts for shard in made.shards), Counts())
    for name in (item.name for item in fields(Counts)):
        expected, found = getattr(summed, name), getattr(made.counts, name)
        if found != expected:
            findings.add(Code.COUNTS, MANIFEST, where=f"counts.{name}", expected=expected, found=found)
    if made.quarantine_reasons != made.counts.quarantine_reasons:
        findings.add(
            Code.COUNTS,
            MANIFEST,
            where="quarantine_reasons",
            expected=made.counts.quarantine_reasons,
            found=made.quarantine_reasons,
        )
    for shard in made.shards:
        counts = shard.counts
        sums = {
            "counts.read": (shard.source.records, counts.read),
            "converted + quarantined + filtered": (
                counts.read,
                counts.converted + counts.quarantined + counts.filtered,
            ),
            "counts.quarantine_reasons": (counts.quarantined, sum(counts.quarantine_reasons.values())),
        }
        for where, (wanted, amount) in sums.items():
            if amount != wanted:
                findings.add(Code.COUNTS, shard.path, where=where, expected=wanted, found=amount)
    _check_ranges(made, findings)


def _check_ranges(made: Manifest, findings: Findings) -> None:
    """Shards follow one another through the inputs, without gaps, under their numbers' names."""
    names = [entry.path for entry in made.inputs]
    for name, times in Counter(names).items():
        if times > 1:
            findings.add(Code.MANIFEST, MANIFEST, where="inputs", found=f"{name} {times} times")
    read: dict[str, int] = dict.fromkeys(names, 0)
    newest = -1
    for number, shard in enumerate(made.shards):
        paths = [(shard.path, data_path(number)), (shard.plans.path, plans_path(number))]
        if shard.quarantine is not None:
            paths.append((shard.quarantine.path, quarantine_path(number)))
        for found, expected in paths:
            if found != expected:
                findings.add(Code.MANIFEST, MANIFEST, where=f"shards[{number}]", expected=expected, found=found)
        source = shard.source
        if source.file not in read:
            findings.add(
                Code.SHARD_RANGE,
                MANIFEST,
                where=f"shards[{number}].source.file",
                expected="an input",
                found=source.file,
            )
            continue
        place = names.index(source.file)
        if source.first != read[source.file] or place < newest:
            findings.add(
                Code.SHARD_RANGE,
                MANIFEST,
                where=f"shards[{number}].source",
                expected=f"{names[max(place, newest)]} from record {read[source.file]}",
                found=f"{source.file} from record {source.first}",
            )
        newest = max(newest, place)
        read[source.file] = source.first + source.records
    for entry in made.inputs:
        if entry.records != read[entry.path]:
            findings.add(
                Code.COUNTS,
                MANIFEST,
                where=f"inputs: records of {entry.path}",
                expected=read[entry.path],
                found=entry.records,
            )


def _check_stray(place: Place, made: Manifest, findings: Findings) -> None:
    listed = {path for shard in made.shards for path, _ in shard.files()}
    for folder in ("data", "plans", "quarantine"):
        for name in place.names(folder):
            if name not in listed:
                findings.add(Code.STRAY_FILE, name)


def _locations(place: Place, given: Mapping[str, str] | None, findings: Findings) -> dict[str, str]:
    """Where the inputs are, by name."""
    locations: dict[str, str] = {}
    try:
        run = msgspec.json.decode(place.get(RUN) or b"{}")
        locations = msgspec.convert(run.get("inputs", {}) if isinstance(run, dict) else {}, dict[str, str])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        findings.add(Code.UNREADABLE, RUN, found=str(error))
    return {**locations, **(given or {})}
