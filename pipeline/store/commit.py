"""Progress on disk while a run is under way: ``_work/`` (DESIGN §6).

A shard is done when its commit exists. ``_work/identity.json`` says which run this is, so that a run with another recipe
or input is refused instead of mixed in.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from pipeline.errors import UserError
from pipeline.store import manifest
from pipeline.store.format import MANIFEST, RUN, TOKENIZER, WORK
from pipeline.store.manifest import Manifest, Shard
from pipeline.store.place import Place

_IDENTITY = f"{WORK}/identity.json"
_OWN = (MANIFEST, RUN, TOKENIZER)
_OWN_FOLDERS = ("data/", "plans/", "quarantine/", f"{WORK}/")


def write(out: Place, number: int, shard: Shard) -> None:
    """Commit a shard whose files are all in place."""
    out.put(_path(number), msgspec.json.encode(shard))


def _path(number: int) -> str:
    return f"{WORK}/commits/part-{number:05d}.json"


def finished(out: Place) -> dict[int, Shard]:
    """The shards that are done, their files' hashes checked. What does not hold is converted again."""
    done: dict[int, Shard] = {}
    for name in out.names(f"{WORK}/commits"):
        try:
            shard = msgspec.json.decode(out.get(name) or b"", type=Shard)
        except msgspec.DecodeError:
            continue  # a commit that cannot be read commits nothing
        if all(out.sha256(path) == digest for path, digest in shard.files()):
            done[int(name.removesuffix(".json").rpartition("-")[2])] = shard
    return done


def open_manifest(out: Place) -> Manifest | None:
    """The manifest of a finished dataset, or None where there is none."""
    data = out.get(MANIFEST)
    return None if data is None else manifest.decode(data, out.path(MANIFEST))


def unfinished(out: Place) -> dict[str, Any] | None:
    """The identity of the run that was under way, or None where there is none."""
    known = out.get(_IDENTITY)
    return None if known is None else json.loads(known)


def begin(out: Place, identity: dict[str, Any], fresh: bool) -> None:
    """Make ``out`` ready for a run: new, resumed, or cleared with ``fresh``.

    Raises :class:`UserError` where another run's work or foreign files are in the way, saying what differs.
    """
    names = out.names()
    foreign = [name for name in names if name not in _OWN and not name.startswith(_OWN_FOLDERS)]
    known = unfinished(out)
    finished_before = open_manifest(out) if not fresh else None
    if foreign and known is None and MANIFEST not in names:
        raise UserError(
            f"--out {out}: there are other files in it ({foreign[0]}{', …' if len(foreign) > 1 else ''}); "
            f"name a new or empty directory"
        )
    if fresh:
        clear(out)
    elif known is not None or finished_before is not None:
        before = known if known is not None else manifest.identity_of(finished_before)  # type: ignore[arg-type]
        differing = manifest.differences(before, identity)
        if differing:
            state = "a finished dataset" if known is None else "an unfinished run"
            raise UserError(
                f"--out {out}: holds {state} of another kind:\n  " + "\n  ".join(differing) + "\n"
                "Use another --out, or --fresh to start over."
            )
    out.put(_IDENTITY, json.dumps(identity, ensure_ascii=False, sort_keys=True).encode())


def clear(out: Place) -> None:
    """Delete what earlier runs left, the manifest first: without it there is no dataset."""
    out.delete(MANIFEST)
    for name in out.names():
        if name in _OWN or (name.startswith(_OWN_FOLDERS) and name != f"{WORK}/lock"):
            out.delete(name)


def reopen(out: Place, before: Manifest, again: set[int]) -> None:
    """Turn a finished dataset back into an unfinished run in which the shards ``again`` are missing."""
    out.put(_IDENTITY, json.dumps(manifest.identity_of(before), ensure_ascii=False, sort_keys=True).encode())
    for number, shard in enumerate(before.shards):
        if number not in again:
            write(out, number, shard)
    out.delete(MANIFEST)


def finish(out: Place, made: Manifest, tokenizer_json: str, run: dict[str, Any]) -> None:
    """Write what is left, the manifest last, and remove ``_work/``."""
    wanted = {path for shard in made.shards for path, _ in shard.files()}
    for name in out.names():
        if name.startswith(("data/", "plans/", "quarantine/")) and name not in wanted:
            out.delete(name)  # of an earlier run with more shards or more rejects
    out.put(TOKENIZER, tokenizer_json.encode())
    out.put(RUN, (json.dumps(run, ensure_ascii=False, indent=1) + "\n").encode())
    out.put(MANIFEST, made.encode())
    out.delete_folder(WORK)
