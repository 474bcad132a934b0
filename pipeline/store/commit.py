"""Progress on disk while a run is under way: ``_work/`` (DESIGN §6).

A shard is done when its commit exists. ``_work/identity.json`` says which run this is, so that a run with another
recipe or input is refused instead of mixed in.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from pipeline.errors import UserError
from pipeline.store import manifest
from pipeline.store.format import IDENTITY, MANIFEST, RUN, TOKENIZER, WORK
from pipeline.store.identity import differences, identity_of, software
from pipeline.store.manifest import Manifest, Shard
from pipeline.store.place import Place

#: In the place of an identity: ``--fresh`` is deleting what was there before.
_CLEARED: dict[str, Any] = {}
#: What to do about another run's work.
_REMEDY = "Use another --out, or --fresh to start over."
#: Everything that a run writes, and so everything that a run may delete: a directory may hold other files too.
_OWN = re.compile(
    r"data/part-\d+\.parquet|plans/part-\d+\.jsonl\.zst|quarantine/part-\d+\.jsonl"
    rf"|{WORK}/.*|{re.escape(MANIFEST)}|{re.escape(RUN)}|{re.escape(TOKENIZER)}"
)


class _Commit(msgspec.Struct, frozen=True):
    """A finished shard and the versions of what made it: shards of different makes are not mixed."""

    shard: Shard
    software: dict[str, str]


def write(out: Place, number: int, shard: Shard) -> None:
    """Commit a shard whose files are all in place."""
    out.put(_path(number), msgspec.json.encode(_Commit(shard, software())))


def _path(number: int) -> str:
    return f"{WORK}/commits/part-{number:05d}.json"


def finished(out: Place) -> dict[int, Shard]:
    """The shards that are done, their files' hashes checked. What does not hold is converted again."""
    done: dict[int, Shard] = {}
    versions = software()
    for name in out.names(f"{WORK}/commits"):
        try:
            found = msgspec.json.decode(out.get(name) or b"", type=_Commit)
        except msgspec.DecodeError:
            continue  # a commit that cannot be read commits nothing
        if found.software == versions and _is_whole(out, found.shard):
            done[int(name.removesuffix(".json").rpartition("-")[2])] = found.shard
    return done


def _is_whole(out: Place, shard: Shard) -> bool:
    return all(out.sha256(path) == digest for path, digest in shard.files())


def damaged(out: Place, made: Manifest) -> set[int] | None:
    """The shards of a finished dataset whose files are not what the manifest says; None where nothing is wrong."""
    wrong = {number for number, shard in enumerate(made.shards) if not _is_whole(out, shard)}
    return wrong if wrong or out.sha256(TOKENIZER) != made.tokenizer.sha256 else None


def open_manifest(out: Place) -> Manifest | None:
    """The manifest of a finished dataset, or None where there is none."""
    data = out.get(MANIFEST)
    return None if data is None else manifest.decode(data, out.path(MANIFEST))


def tidy(out: Place) -> None:
    """Remove what a run leaves that was killed between writing the manifest and removing ``_work/``."""
    out.delete_folder(WORK)


def unfinished(out: Place) -> dict[str, Any] | None:
    """The identity of the run that was under way, or None where there is none."""
    known = out.get(IDENTITY)
    return None if known is None else json.loads(known)


def check(out: Place, identity: dict[str, Any], fresh: bool, remedy: str = _REMEDY) -> bool:
    """Whether what is in ``out`` has to be deleted before a run can begin. Changes nothing.

    Raises :class:`UserError` where another run's work or foreign files are in the way, saying what differs.
    """
    known, made, state = unfinished(out), out.get(MANIFEST), "an unfinished run"
    if known is None and made is not None:
        state = "a finished dataset"
        known = _CLEARED if fresh else identity_of(manifest.decode(made, out.path(MANIFEST)))
    if known is None:
        foreign = [name for name in out.names() if not name.startswith(f"{WORK}/")]
        if foreign:
            raise UserError(
                f"--out {out}: there are other files in it ({foreign[0]}{', …' if len(foreign) > 1 else ''}); "
                f"name a new or empty directory"
            )
        return False
    if fresh or known == _CLEARED:
        return True
    differing = differences(known, identity)
    if differing:
        raise UserError(f"--out {out}: holds {state} of another kind:\n  " + "\n  ".join(differing) + "\n" + remedy)
    return False


def begin(out: Place, identity: dict[str, Any], fresh: bool, remedy: str = _REMEDY) -> None:
    """Make ``out`` ready for a run: new, resumed, or cleared with ``fresh``.

    Raises :class:`UserError` as :func:`check` does.
    """
    if check(out, identity, fresh, remedy):
        _clear(out)
    _identify(out, identity)


def forget(out: Place) -> None:
    """Take back what :func:`begin` did for a run that could not do anything: another one may want the place."""
    if all(name.startswith(f"{WORK}/") and not name.startswith(f"{WORK}/commits/") for name in out.names()):
        tidy(out)


def _identify(out: Place, identity: dict[str, Any]) -> None:
    # In the order that keys have: a retry that goes on makes its manifest from this.
    out.put(IDENTITY, json.dumps(identity, ensure_ascii=False).encode())


def _clear(out: Place) -> None:
    """Delete what earlier runs left, the manifest first: without it there is no dataset.

    Who is killed here leaves the mark of a clearing that is not done, which the next run does to its end.
    """
    _identify(out, _CLEARED)
    out.delete(MANIFEST)
    for name in out.names():
        if _OWN.fullmatch(name) and name not in (IDENTITY, f"{WORK}/lock"):
            out.delete(name)


def reopen(out: Place, before: Manifest, again: set[int]) -> None:
    """Turn a finished dataset back into an unfinished run in which the shards ``again`` are missing.

    All of them are, where other versions of the software made them.
    """
    _identify(out, identity_of(before))
    for number, shard in enumerate(before.shards):
        if number not in again and before.software == software():
            write(out, number, shard)
    out.delete(MANIFEST)


def finish(out: Place, made: Manifest, tokenizer_json: str, run: dict[str, Any]) -> None:
    """Write what is left, the manifest last, and remove ``_work/``."""
    wanted = {path for shard in made.shards for path, _ in shard.files()}
    for name in out.names():
        if "/" in name and not name.startswith(f"{WORK}/") and _OWN.fullmatch(name) and name not in wanted:
            out.delete(name)  # of an earlier attempt that rejected more
    out.put(TOKENIZER, tokenizer_json.encode())
    out.put(RUN, (json.dumps(run, ensure_ascii=False, indent=1) + "\n").encode())
    out.put(MANIFEST, made.encode())
    tidy(out)
