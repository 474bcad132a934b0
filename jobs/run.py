"""A whole run: scan the inputs, refuse or resume, convert what is missing, commit, write the manifest last."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from jobs.executor import Executor, InProcess
from jobs.progress import Progress
from jobs.shard import Setup, Task, is_same_shard
from jobs.teacher import as_teacher, cost, planned_by, teacher_setup
from jobs.where import choose, gpus_here
from pipeline.engines.spec import EngineSpec
from pipeline.errors import UserError
from pipeline.grid.ids import token_ids
from pipeline.grid.tokens import Tokenizer
from pipeline.location import redact
from pipeline.read.cut import check_messages_field, cut_all, input_size
from pipeline.read.inputs import InputFile, Stamp, stamp
from pipeline.read.scan import FileScan, hash_file, scan
from pipeline.recipe import Recipe
from pipeline.store import commit, identity
from pipeline.store.format import WORK
from pipeline.store.manifest import Input, Manifest, Shard
from pipeline.store.place import Place
from pipeline.store.plans import StoredPlans

if TYPE_CHECKING:
    from jobs.teaching import TeacherSetup

#: How many times a retry that is under way may have a question asked.
ROUNDS = f"{WORK}/rounds"


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is asked to do. Only ``files``, ``recipe``, ``tokenizer``, ``plans`` and the model that answers decide what
    the bytes are."""

    files: Sequence[InputFile]
    out: str
    recipe: Recipe
    tokenizer: Tokenizer
    #: The dataset whose plans are scheduled again.
    plans: str | None = None
    #: What makes the plans, where the recipe's planner asks a model.
    engine: EngineSpec | None = None
    #: Where answers are kept; None: beside ``out``.
    answers: str | None = None
    #: How many times the recipe's attempts a question may be asked: more than once in a retry.
    rounds: int = 1
    #: None: as many as there are CPUs.
    workers: int | None = None
    #: ``auto``, ``local``, ``off``, or the address of a cluster.
    ray: str = "auto"
    fresh: bool = False
    #: Shards that a finished dataset shall have converted again (``pipeline retry``).
    again: Callable[[Manifest], set[int]] | None = None


class Summary(msgspec.Struct, frozen=True):
    """What a run did."""

    manifest: Manifest
    out: str
    seconds: float
    #: Shards that were converted now; the others were there already.
    converted_shards: int
    #: Attempts that were lost with their workers.
    lost_attempts: int
    #: What asking a model has cost, in words and numbers of ``run.json``; None where none was asked.
    teacher: dict[str, Any] | None = None


def run(options: RunOptions, progress: Progress) -> Summary:
    """Convert all inputs into one dataset. Running the same again resumes, and gives the same bytes.

    Raises :class:`UserError` with the remedy where the run cannot begin or go on. Whatever ends it, a KeyboardInterrupt
    or kill -9 too, finished shards stay.
    """
    started = time.time()
    recipe, tokenizer, out = options.recipe, options.tokenizer, Place(options.out)
    _check_utf8(options)
    # A cluster that does not answer is said now. How much input there is may still move the work from here to Ray.
    here = choose(options.ray, options.workers, 0, options.engine) in ("off", "local")
    ids = token_ids(recipe.layout, tokenizer)
    plans, planned = _open_plans(options.plans)
    if planned is not None:
        recipe = planned_by(recipe, planned)
    teacher = None
    if planned is None:
        teacher = teacher_setup(
            recipe, options.engine, options.answers, options.out, options.rounds, here, progress.notice
        )
    answering = planned.teacher if planned is not None else teacher and as_teacher(teacher.model)
    files = [file for file in options.files if not out.holds(file.location)]  # `--input . --out ./grids`
    if plans is not None and plans.place.path() == out.path():
        raise UserError(f"--plans {plans.place}: is --out too; a dataset cannot be made from its own plans")
    check_messages_field(files, recipe.read)
    with out.lock():
        stamps = [stamp(file.location) for file in files]
        scans = _scan(files, recipe, progress)
        plans_fingerprint = plans.fingerprint if plans else None
        hashes = [(file.name, scanned.sha256) for file, scanned in zip(files, scans, strict=True)]
        wanted = identity.identity(recipe, tokenizer, hashes, plans_fingerprint, answering)
        before = None if options.fresh else commit.open_manifest(out)
        again: set[int] | None = None
        if before is not None and identity.identity_of(before) == wanted:
            again = options.again(before) if options.again is not None else commit.damaged(out, before)
            if again is None:
                commit.tidy(out)
                return Summary(before, options.out, time.time() - started, 0, 0)
        remedy = {} if options.again is None else {"remedy": "`pipeline convert … --fresh` makes it anew."}
        commit.check(out, wanted, options.fresh, **remedy)
        # What was there is touched when there are workers to do better: many a run ends before that.
        progress.begin_workers()
        with _executor(options, input_size(scans, recipe.read), teacher, progress) as executor:
            if before is not None and again is not None:
                if options.rounds > 1:  # before quarantine files change, which it was reckoned from
                    out.put(ROUNDS, str(options.rounds).encode())
                commit.reopen(out, before, again)
            commit.begin(out, wanted, options.fresh, **remedy)
            done = commit.finished(out)
            setup = Setup(recipe, tokenizer, ids, out, plans, teacher)
            try:
                shards, records = _convert(executor, setup, files, scans, done, progress)
                _check_unchanged(files, stamps, scans)
                if not shards:
                    raise UserError(f"no records in {', '.join(file.name for file in files)}: the input is empty")
            except UserError:
                commit.forget(out)
                raise
        made = identity.build_manifest(
            recipe,
            tokenizer,
            ids,
            plans_fingerprint,
            answering,
            [Input(f.name, s.size, s.sha256, records.get(f.name, 0)) for f, s in zip(files, scans, strict=True)],
            shards,
        )
        converted = len(shards) - progress.kept_shards
        asked = None if teacher is None else cost(teacher, progress, executor)
        about = _run_json(options, teacher, files, started, converted, executor.lost, progress, asked)
        commit.finish(out, made, tokenizer.json, about)
    return Summary(made, options.out, time.time() - started, converted, executor.lost, asked)


def _check_utf8(options: RunOptions) -> None:
    """Names stand in the dataset's documents, and these are UTF-8."""
    names = [("", file.location) for file in options.files]
    names += [("--out ", options.out), ("--plans ", options.plans or ""), ("--answers ", options.answers or "")]
    for option, name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = name.encode("utf-8", "backslashreplace").decode()
            raise UserError(
                f"{option}{shown}: the name is not UTF-8; rename it, or the directory that has it"
            ) from None


def _scan(files: Sequence[InputFile], recipe: Recipe, progress: Progress) -> list[FileScan]:
    progress.begin_scan(sum(file.size for file in files), len(files))
    return [scan(file, recipe.read, progress.scanned) for file in files]


def _check_unchanged(files: Sequence[InputFile], stamps: Sequence[Stamp], scans: Sequence[FileScan]) -> None:
    """An input that was rewritten while it was read has lent its old hash to new text."""
    for file, before, scanned in zip(files, stamps, scans, strict=True):
        if stamp(file.location) != before and hash_file(file) != scanned.sha256:
            raise UserError(
                f"{file.name}: changed while it was read, so nothing made of it holds; run again with --fresh"
            )


def _open_plans(location: str | None) -> tuple[StoredPlans | None, Manifest | None]:
    if location is None:
        return None, None
    place = Place(location)
    made = commit.open_manifest(place)
    if made is None:
        raise UserError(f"--plans {place}: no dataset: there is no dataset.json in it")
    return StoredPlans.open(place, made), made


def _convert(
    executor: Executor,
    setup: Setup,
    files: Sequence[InputFile],
    scans: Sequence[FileScan],
    finished: dict[int, Shard],
    progress: Progress,
) -> tuple[list[Shard], dict[str, int]]:
    """Convert the shards that are missing. All shards in order, and the records of every file."""
    shards: dict[int, Shard] = {}
    records: dict[str, int] = {}

    def missing() -> Iterator[Task]:
        for task in _tasks(files, scans, setup.recipe):
            cut = task.cut
            records[cut.file] = cut.first + cut.count
            shard = finished.get(task.number)
            if shard is not None and is_same_shard(shard, cut):
                shards[task.number] = shard
                progress.kept(shard.counts, task.input_bytes)
            else:
                yield task

    engine = setup.teacher.engine if setup.teacher is not None else None
    places = executor.workers * (engine.concurrency if engine is not None else 1)
    progress.begin_convert(input_size(scans, setup.recipe.read), executor.description, places)
    for result in executor.run(setup, missing()):
        shards[result.number] = result.shard
        progress.finished(result)
    return [shards[number] for number in sorted(shards)], records


def _tasks(files: Sequence[InputFile], scans: Sequence[FileScan], recipe: Recipe) -> Iterator[Task]:
    """All shards of all files, numbered in order."""
    position = {file.name: 0 for file in files}
    for number, cut in enumerate(cut_all(files, scans, recipe.read)):
        yield Task(number, cut, cut.position - position[cut.file])
        position[cut.file] = cut.position


def _executor(options: RunOptions, size: int, teacher: TeacherSetup | None, progress: Progress) -> Executor:
    engine = teacher.engine if teacher is not None else None
    where = choose(options.ray, options.workers, size, engine)
    if where == "off":
        return InProcess(progress.taught, engine.gpus if engine is not None and gpus_here() else 0)
    from jobs.pool import RayPool  # takes a second to import

    return RayPool(where, options.workers, progress.notice, progress.taught, engine)


def _run_json(
    options: RunOptions,
    teacher: TeacherSetup | None,
    files: Sequence[InputFile],
    started: float,
    converted: int,
    lost: int,
    progress: Progress,
    asked: dict[str, Any] | None,
) -> dict[str, Any]:
    """What may differ between runs. Credentials in a URL stay out of it."""
    seconds = time.time() - started
    return {
        "inputs": {file.name: redact(file.location) for file in files},
        "plans": redact(options.plans) if options.plans else None,
        "tokenizer": options.tokenizer.name,
        # What a retry asks: with the recipe's arguments, which the manifest does not hold. Answers that are beside the
        # dataset stay there when both are moved.
        "engine": asdict(teacher.engine) if teacher is not None else None,
        "answers": teacher.answers if teacher is not None and options.answers is not None else None,
        "teacher": asked,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(seconds, 3),
        "converted_shards": converted,
        "lost_attempts": lost,
        "tokens_per_second": round(progress.tokens_now / max(progress.seconds, 1e-9)),
        "worker_peak_rss_bytes": progress.peak_rss,
        "workers": options.workers,
        "ray": options.ray,
        "software": {"python": platform.python_version(), "system": platform.platform()},
    }
