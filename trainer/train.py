"""A training run, from its configuration to the exported model.

RUN/config.yaml       the configuration that the run was started with
    streams.json      what the model must be told of its streams
    tokenizer.json    the content tokenizer of the dataset
    metrics.csv       a line per step; validation.csv: a line per validation
    checkpoints/      see ``checkpoint``
    model/            the exported model, when the run is done
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import pipeline
from pipeline.errors import UserError
from pipeline.store.dataset import Dataset
from trainer import checkpoint, config, distributed
from trainer.checkpoint import Progress
from trainer.config import Config
from trainer.data import Loader, check_vocabulary
from trainer.distributed import World
from trainer.export import CONFIG_FILE, export
from trainer.files import check_folder, write
from trainer.metrics import Tally, Work, cost_of, peak_of
from trainer.model import description
from trainer.model.build import build
from trainer.model.description import describe
from trainer.model.prepare import checkpoint_layers, compile_layers
from trainer.model.store import TOKENIZER_FILE
from trainer.model.streams import StreamModel
from trainer.model.vocabulary import tables, tokenizer_file
from trainer.optimizer import make_optimizer, rate_share
from trainer.records import METRICS_FILE, VALIDATION_FILE, Records, check_boards, read_table
from trainer.step import Measured, Stepper

_MODEL = "model"
#: A pack with more cells than this takes long where attention is dense.
_MANY_CELLS = 2048
_log = logging.getLogger(__name__)
#: Files that users put into a run's directory themselves, before it is started.
_BESIDE = {".log", ".out", ".err", ".txt", ".yaml", ".yml"}


class Interrupted(Exception):
    """The run was asked to stop, and has left a checkpoint at ``step``."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def train(given: Config, run: Path, resume: bool = False, device: str | None = None) -> None:
    """Train, and export the model to ``run/model``.

    ``resume``: go on from the newest checkpoint in ``run``, if there is one. Raises UserError for everything that a user
    can mend, Interrupted after SIGINT or SIGTERM, when a checkpoint has been written; in processes other than the first,
    distributed.Said in place of a UserError that the first raises as well.
    """
    world = distributed.start(device)
    try:
        with world.alike(), _memory_remedy(given.data.cells):
            check_boards(given.run.log)
            check_folder(run)
            with _alone(run, world):
                _train(given, run, resume, world)
    finally:
        world.stop()


def _train(settings: Config, run: Path, resume: bool, world: World) -> None:
    dataset = pipeline.open_dataset(settings.dataset)
    loader = Loader(dataset, settings.data, rank=world.rank, world_size=world.size, with_index=True)
    held_out = None
    if settings.data.validation_share:
        held_out = Loader(
            dataset, settings.data, split="validation", rank=world.rank, world_size=world.size, with_index=True
        )
    settings = _settled(settings, world, dataset, loader)
    _claim(run, settings, resume, world)
    if world.first:
        checkpoint.tidy(run)
    described = describe(dataset, loader, settings.data)
    bf16 = settings.model.precision == "bf16"
    rows = max(part.rows for part in (loader, held_out) if part is not None)
    model = build(settings.model, described, settings.seed, bf16, rows)
    _check_vocabulary(settings.model.path, dataset, model, world)
    base = checkpoint.base_of(model)
    if world.first and not checkpoint.steps(run):  # as long as there is none, the run is yet to start
        run.mkdir(parents=True, exist_ok=True)
        write(run / description.FILE, described.encode())
        write(run / TOKENIZER_FILE, dataset.tokenizer.json)
        write(run / CONFIG_FILE, settings.to_yaml())  # last: with it, this is a run

    cost, peak = cost_of(model), peak_of(world.device, bf16)
    if settings.model.checkpointing:
        checkpoint_layers(model.backbone)
    if settings.model.compile:
        compile_layers(model.backbone)
    if world.size > 1:
        distributed.shard(model, world, bf16)
    else:
        model.to(world.device)
    model.train()
    course = _Course(settings, run, world, model, base, make_optimizer(model, settings.optimizer), loader, held_out)
    course.go(lambda work, seconds: peak and round(cost.operations(work) / seconds / world.size / peak, 4))
    world.barrier()
    if world.first:
        export(run, run / _MODEL, replace=True)
        _log.info("the model is in %s", run / _MODEL)


def _settled(settings: Config, world: World, dataset: Dataset, loader: Loader) -> Config:
    """The configuration with nothing left to be found out, and the same in every working directory."""
    model, data, run = settings.model, settings.data, settings.run
    if (local := Path(model.path).expanduser()).exists():  # else a hub name
        model = replace(model, path=str(local.resolve()))
    if data.cache is not None:
        data = replace(data, cache=str(Path(data.cache).expanduser().resolve()))
    if model.precision == "auto":
        model = replace(model, precision="bf16" if world.device.type == "cuda" else "fp32")
    if run.max_steps is None:
        run = replace(run, max_steps=loader.steps(0))
    place = dataset.place
    return replace(settings, dataset=place.path() if place.local else str(place), data=data, model=model, run=run)


@contextlib.contextmanager
def _alone(run: Path, world: World) -> Iterator[None]:
    """Have the directory to this run, whose processes would overwrite what those of another write. Raises UserError.

    It is made where it is not there, and removed where nothing came into it.
    """
    with contextlib.ExitStack() as held:
        taken = 0.0
        if world.first:
            new = not run.exists()
            run.mkdir(parents=True, exist_ok=True)
            handle = os.open(run, os.O_RDONLY)
            held.callback(os.close, handle)
            if new:
                held.callback(_remove_empty, run)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken = 1.0
            except OSError as error:  # a file system without locks
                _log.info("%s: cannot be locked (%s)", run, error.strerror)
        if world.sum(torch.tensor([taken])):
            raise UserError(f"--out {run}: another process is at work there; wait for it, or give another directory")
        yield


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _claim(run: Path, settings: Config, resume: bool, world: World) -> None:
    """Raise UserError, in every process alike, where the directory holds something else than this run."""
    frozen = run / CONFIG_FILE
    if _is_started(run):
        if not resume:
            raise UserError(f"--out {run}: holds a run; --resume auto goes on with it, or give another directory")
        if differing := config.compare(config.read(frozen, {}), settings):
            raise UserError(
                f"--out {run}: its run was started with another configuration: {'; '.join(differing)}. "
                f"Set it as it was, or give another directory"
            )
    elif checkpoint.steps(run) or (run / _MODEL).exists():
        raise UserError(f"--out {run}: holds checkpoints or a model, but no {CONFIG_FILE}; give another directory")
    elif others := _others(run):
        raise UserError(
            f"--out {run}: holds something else than a run ({', '.join(others[:3])}{', …' if len(others) > 3 else ''}); "
            f"give a new or an empty directory"
        )
    world.barrier()  # before anything is written, all have looked


def _is_started(run: Path) -> bool:
    """Whether a step of a run has been done there; one that failed before does not occupy its directory."""
    return (run / CONFIG_FILE).exists() and bool(checkpoint.steps(run) or _measured(run) or (run / _MODEL).exists())


def _measured(run: Path) -> bool:
    path = run / METRICS_FILE
    return path.exists() and bool(read_table(path))


def _others(run: Path) -> list[str]:
    """What lies in a directory and was not left there by a start that failed."""
    own = {description.FILE, TOKENIZER_FILE, METRICS_FILE, VALIDATION_FILE, "checkpoints", "tensorboard", "wandb"}
    if (run / description.FILE).exists():  # written before it; else it is a file of the user's
        own.add(CONFIG_FILE)
    there = [path for path in run.iterdir() if path.suffix not in _BESIDE or path.name == CONFIG_FILE]
    return sorted(path.name for path in there if path.name not in own and not path.name.startswith("."))


def _check_vocabulary(path: str, dataset: Dataset, model: StreamModel, world: World) -> None:
    """Raise UserError where token ids mean something else to the model than in the dataset."""
    own = tokenizer_file(path)
    if own is None and world.first:
        _log.warning("%s has no tokenizer.json: whether its tokens are those of the dataset cannot be checked", path)
    check_vocabulary(dataset, len(tables(model.backbone)[0]), own)


@dataclass
class _Course:
    """Step after step, in one process."""

    settings: Config
    run: Path
    world: World
    model: StreamModel
    #: ``checkpoint.base_of`` the model.
    base: str | None
    optimizer: torch.optim.Optimizer
    loader: Loader
    held_out: Loader | None

    def go(self, share_of_peak: Callable[[Work, float], float | None]) -> None:
        """All steps that are left. Raises Interrupted."""
        world, options = self.world, self.settings.run
        names = [stream.name for stream in self.loader.streams]
        step, last = self._restore(), options.max_steps or 0
        self._announce(step, last)
        stepper = Stepper(self.settings, world, self.model, self.optimizer, len(names))
        steps: Any = iter(self.loader)  # a generator: closed, it stops its thread
        records = Records(self.run, self.settings, names, step, world.first)
        with contextlib.closing(records), _stop_signals(world.first) as told, contextlib.closing(steps):
            if self._is_due(step, last) and not self._is_validated(step):  # stopped or killed before it was done
                self._validate(stepper, records, step, names)
            while step < last:
                began = time.perf_counter()
                share = rate_share(step, last, self.settings.optimizer)
                with self._standing():
                    measured = stepper.step(step, next(steps), share, records.pack)
                step += 1
                tally, work, stop = self._together(measured, told.is_set())
                seconds = time.perf_counter() - began
                values = tally.means(names) | {
                    "learning_rate": share * self.settings.optimizer.learning_rate,
                    "gradient_norm": measured.norm,
                    "conversations": work.conversations,
                    "positions": work.cells,
                    "positions_per_second": round(work.cells / seconds, 1),
                    "mfu": share_of_peak(work, seconds),
                }
                records.step(step, values)
                if stop or step == last or step % options.save_every == 0:
                    progress = Progress(step, self.loader.state_dict(), self.base)
                    with self._standing():
                        stepper.check_parameters(step)
                        checkpoint.save(self.run, progress, self.model, self.optimizer, world, options.keep)
                if stop and step < last:
                    raise Interrupted(step)  # a validation that is due is done when the run goes on
                if self._is_due(step, last):
                    self._validate(stepper, records, step, names)

    @contextlib.contextmanager
    def _standing(self) -> Iterator[None]:
        """A UserError also says what there is to go on from."""
        try:
            yield
        except UserError as error:
            standing = checkpoint.standing(self.run)
            raise UserError(f"{error}. {standing[0].upper()}{standing[1:]}") from None

    def _is_due(self, step: int, last: int) -> bool:
        """Whether a validation belongs to this step."""
        every = self.settings.run.validate_every
        return self.held_out is not None and step > 0 and (step == last or (every > 0 and step % every == 0))

    def _is_validated(self, step: int) -> bool:
        """Whether this was done; the same in all processes, since a line is written when all have taken part."""
        path = self.run / VALIDATION_FILE
        return path.exists() and str(step) in {row["step"] for row in read_table(path)}

    def _validate(self, stepper: Stepper, records: Records, step: int, names: list[str]) -> None:
        assert self.held_out is not None
        tally = stepper.validate(self.held_out.epoch(0))
        tally.sums = self.world.sum(torch.from_numpy(tally.sums)).numpy()
        records.validation(step, tally.means(names))

    def _restore(self) -> int:
        """Go back to the newest checkpoint; the steps that are done."""
        done = checkpoint.steps(self.run)
        if self.world.first:
            for folder in checkpoint.incomplete(self.run):
                _log.warning("%s: passed over, it is not complete", folder)
            if not done and _measured(self.run):
                _log.warning("no checkpoint in %s: beginning anew", self.run / "checkpoints")
        if not done:
            return 0
        progress = checkpoint.restore(self.run, done[-1], self.model, self.optimizer, self.world, self.base)
        self.loader.load_state_dict(progress.loader)
        return progress.step

    def _announce(self, step: int, last: int) -> None:
        packing, cells = self.loader.packing(0), self.settings.data.cells
        if self.world.first:
            _log.info(
                "%d conversations (%d too long and left out) in %d packs of %d positions, %.2f %% of them padding; "
                "%s an epoch; %s",
                packing.conversations, self.loader.dropped, packing.packs, cells, 100 * packing.padding,
                _steps(packing.steps), f"going on after step {step} of {last}" if step else _steps(last),
            )  # fmt: skip
            if self.world.device.type == "cpu" and cells > _MANY_CELLS:
                longest = max(part.longest for part in (self.loader, self.held_out) if part is not None)
                enough = f", and --set data.cells={longest} is enough" if longest < cells else ""
                _log.info(
                    "attention on the CPU is dense: its time and memory grow with the square of data.cells (%d); the longest "
                    "conversation has %d cells%s", cells, longest, enough,
                )  # fmt: skip

    def _together(self, measured: Measured, told: bool) -> tuple[Tally, Work, bool]:
        """What all processes measured, and whether any was told to stop: one sum."""
        tally, work, _ = measured
        values = torch.tensor([*tally.sums.reshape(-1), *work, float(told)], dtype=torch.float64)
        sums = self.world.sum(values).numpy()
        tally.sums = sums[: tally.sums.size].reshape(tally.sums.shape)
        return tally, Work(*(int(x) for x in sums[tally.sums.size : -1])), bool(sums[-1])


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"


@contextlib.contextmanager
def _stop_signals(speaks: bool) -> Iterator[threading.Event]:
    """SIGINT and SIGTERM as a wish to stop after the step; a second SIGINT stops at once."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if told.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        first = not told.is_set()
        told.set()
        if speaks and first:
            # Past sys.stderr, which may be amid a write of the bar's: that line is cleared.
            clear = "\r\033[K" if sys.stderr.isatty() else ""
            words = "Stopping after this step" + ("; Ctrl-C again stops at once" if number == signal.SIGINT else "")
            with contextlib.suppress(OSError):  # as in `… 2>&1 | tee log`, where Ctrl-C ends the reader as well
                os.write(2, f"{clear}{words}\n".encode())

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _memory_remedy(cells: int) -> Iterator[None]:
    """Say what helps where the memory of a device is not enough."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        _, on_cpu, reason = str(error).partition("DefaultCPUAllocator: ")
        if not (on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)):
            raise
        reason = (reason or str(error)).partition("\n")[0]
        squared = "; without a GPU, attention takes memory with their square" if on_cpu else ""
        raise UserError(
            f"out of memory ({reason}). A pack has {cells} positions{squared}: set data.cells lower (with shorter "
            f"windows, or data.too_long: drop), model.checkpointing: true or model.tune: lora, or use more devices with "
            f"torchrun"
        ) from None
