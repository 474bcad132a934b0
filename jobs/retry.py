"""Running the quarantine again: a run that converts the shards with rejected records once more.

The shards without any are kept by their commits, so this is an ordinary run that resumes, and can be killed like one.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.run import ROUNDS, RunOptions
from jobs.teacher import beside
from pipeline.engines.spec import EngineSpec
from pipeline.errors import Reason, UserError
from pipeline.grid.tokens import Tokenizer
from pipeline.read.inputs import InputFile, resolve_inputs
from pipeline.recipe import Recipe, from_manifest
from pipeline.store import commit
from pipeline.store.format import RUN, TOKENIZER, quarantine_path
from pipeline.store.identity import identity_of
from pipeline.store.manifest import Manifest
from pipeline.store.place import Place


def shards_with_quarantine(made: Manifest) -> set[int]:
    """The numbers of the shards in which a record was rejected."""
    return {number for number, shard in enumerate(made.shards) if shard.quarantine is not None}


def quarantined(location: str) -> int:
    """The records that are in quarantine at ``location``, in a finished dataset or in one that is being retried."""
    out = Place(location)
    made = commit.open_manifest(out)
    if made is not None:
        return made.counts.quarantined
    folder = quarantine_path(0).partition("/")[0]
    return sum((out.get(name) or b"").count(b"\n") for name in out.names(folder))


def retry_options(
    location: str, workers: int | None, ray: str, engine: EngineSpec | None = None, answers: str | None = None
) -> RunOptions:
    """The options of the run that retries the dataset at ``location``.

    ``engine``, ``answers``: instead of those of the last run, which may have moved.
    Raises :class:`UserError` where there is no dataset, nothing in quarantine, or an input is gone.
    """
    out = Place(location)
    made = commit.open_manifest(out)
    identity = identity_of(made) if made is not None else commit.unfinished(out)
    run, tokenizer = out.get(RUN), out.get(TOKENIZER)
    if identity is None or run is None or tokenizer is None:
        raise UserError(
            f"{location}: no finished dataset to retry; an unfinished run goes on with its own convert command"
        )
    if made is not None and not shards_with_quarantine(made):
        raise UserError(f"{location}: nothing is in quarantine, so there is nothing to retry")
    about: dict[str, Any] = json.loads(run)
    recipe = from_manifest(identity["recipe"], identity["layout"])
    if recipe.teacher is not None and about.get("plans") is None and not answers:
        _check_answers(about.get("answers") or beside(location))
    return RunOptions(
        files=[_input(name, about["inputs"].get(name), location) for name in identity["inputs"]],
        out=location,
        recipe=recipe,
        tokenizer=Tokenizer(about["tokenizer"], identity["tokenizer"], tokenizer.decode()),
        plans=about.get("plans"),
        engine=_engine(about.get("engine"), engine),
        answers=answers or about.get("answers"),
        rounds=_rounds(out, recipe),
        workers=workers,
        ray=ray,
        again=shards_with_quarantine,
    )


def _check_answers(folder: str) -> None:
    """Without them, a retry would pay once more for all that it does not ask again."""
    if not Path(folder).is_dir():
        raise UserError(
            f"{folder}: the answers of the last run are no longer there; say with --answers where they are now, or name a "
            f"new directory to ask for all of them again"
        )


def _rounds(out: Place, recipe: Recipe) -> int:
    """One round of questions more than the records that are to be tried again have had: their answers are kept, and would
    be as invalid as before. A retry that goes on has as many as when it began.

    A round ends with its last attempt, or with a request that is refused: who was refused has had at most as many rounds
    as answers. More rounds than needed cost nothing but attempts.
    """
    if recipe.teacher is None:
        return 1
    if (known := out.get(ROUNDS)) is not None:
        return int(known)
    folder = quarantine_path(0).partition("/")[0]
    had = 0
    for name in out.names(folder):
        for line in (out.get(name) or b"").splitlines():
            document = json.loads(line)
            said = len(document.get("answers", ()))
            full = 1 if document["reason"] == Reason.TEACHER_REFUSED else recipe.teacher.attempts
            had = max(had, -(-said // full))
    return 1 + had


def _engine(known: dict[str, Any] | None, given: EngineSpec | None) -> EngineSpec | None:
    """The engine of the last run, or the one that is given instead, with as much patience and as many requests at a time."""
    if known is None:
        return given
    if given is not None:
        return replace(given, concurrency=known["concurrency"], timeout=known["timeout"])
    return EngineSpec(
        **known | {"where": tuple(known["where"]), "args": tuple((key, value) for key, value in known["args"])}
    )


def _input(name: str, location: str | None, dataset: str) -> InputFile:
    if location is None:
        raise UserError(f"{dataset}: {RUN} does not say where the input {name} is; use convert instead")
    (found,) = resolve_inputs([location])
    return InputFile(name, found.location, found.size)
