"""A training run, from its configuration to the exported model.

    RUN/config.yaml       the configuration, frozen
        streams.json      what the model must be told of its streams
        tokenizer.json    the content tokenizer of the dataset
        metrics.csv       a line per step; validation.csv: a line per validation
        checkpoints/      see ``checkpoint``
        model/            the exported model, when the run is done

The loss of a step is one weighted mean: over all cells of all packs, on all processes. Every step is a function of the
parameters, the optimiser's state, the loader's state and the step's number.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

import pipeline
from pipeline.errors import UserError
from pipeline.store.dataset import Dataset
from trainer import checkpoint, config, distributed, export
from trainer.checkpoint import Progress
from trainer.config import Config
from trainer.data import Batch, Loader, check_vocabulary
from trainer.distributed import World
from trainer.metrics import Boards, Cost, Table, Tally, Work, columns, cost_of, peak_of, work_of
from trainer.model import description
from trainer.model.attention import decoder_layers
from trainer.model.build import build
from trainer.model.description import describe
from trainer.model.streams import StreamModel
from trainer.model.store import TOKENIZER_FILE
from trainer.model.vocabulary import tokenizer_file
from trainer.optimizer import make_optimizer, rate_share, set_rates

_log = logging.getLogger(__name__)
CONFIG_FILE, METRICS_FILE, VALIDATION_FILE = "config.yaml", "metrics.csv", "validation.csv"


class Interrupted(Exception):
    """The run was asked to stop, and has left a checkpoint at ``step``."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def train(given: Config, run: Path, resume: bool = False, device: str | None = None) -> None:
    """Train, and export the model to ``run/model``.

    ``resume``: go on from the newest checkpoint in ``run``, if there is one. Raises UserError for everything that a user
    can mend, Interrupted after SIGINT or SIGTERM, when a checkpoint has been written.
    """
    world = distributed.start(device)
    try:
        _train(_settled(given, world), run, resume, world)
    finally:
        world.stop()


def _settled(given: Config, world: World) -> Config:
    """The configuration with nothing left to be found out."""
    precision = given.model.precision
    if precision == "auto":
        precision = "bf16" if world.device.type == "cuda" else "fp32"
    return replace(given, model=replace(given.model, precision=precision))


def _train(settings: Config, run: Path, resume: bool, world: World) -> None:
    bf16 = settings.model.precision == "bf16"
    dataset = pipeline.open_dataset(settings.dataset)
    loader = Loader(dataset, settings.data, rank=world.rank, world_size=world.size, with_index=True)
    held_out = None
    if settings.data.validation_share:
        held_out = Loader(
            dataset, settings.data, split="validation", rank=world.rank, world_size=world.size, with_index=True
        )
    if settings.run.max_steps is None:
        settings = replace(settings, run=replace(settings.run, max_steps=loader.steps(0)))
    _claim(run, settings, resume, world, dataset, loader)

    model = build(settings.model, description.read(run), settings.seed, bf16)
    _check_vocabulary(settings, dataset, model)
    cost = cost_of(model)
    if settings.model.checkpointing:
        model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if settings.model.compile:
        for layer in decoder_layers(model.backbone):
            layer.compile(dynamic=False)
    if world.size > 1:
        distributed.shard(model, world, bf16)
    else:
        model.to(world.device)
    model.train()
    optimizer = make_optimizer(model, settings.optimizer)
    trainer = _Trainer(settings, run, world, model, optimizer, loader, held_out, cost)
    try:
        trainer.go()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory ({str(error).splitlines()[0]}). A pack has {settings.data.cells} positions: set data.cells "
            f"lower (with data.too_long: drop, or shorter windows), set model.checkpointing: true, train with "
            f"model.tune: lora, or on more devices with torchrun"
        ) from None
    world.barrier()
    if world.first:
        export.export(run, run / "model")
        _log.info("model exported to %s", run / "model")


def _claim(run: Path, settings: Config, resume: bool, world: World, dataset: Dataset, loader: Loader) -> None:
    """Make the run's directory, or check that it is this run's. Raises UserError, in every process alike."""
    frozen = run / CONFIG_FILE
    exists = frozen.exists()
    if exists and not resume:
        raise UserError(f"--out {run}: holds a run already; go on with it by --resume auto, or give another directory")
    if exists and (differing := config.compare(config.read(frozen, {}), settings)):
        raise UserError(
            f"--out {run}: its run was started with another configuration: {'; '.join(differing)}. "
            f"Set it as it was, or give another directory"
        )
    if not exists and run.is_dir() and any(run.iterdir()):
        raise UserError(f"--out {run}: is not empty and holds no run; give another directory")
    world.barrier()  # all have looked
    if world.first:
        run.mkdir(parents=True, exist_ok=True)
        (run / description.FILE).write_text(describe(dataset, loader, settings.data).encode())
        (run / TOKENIZER_FILE).write_text(dataset.tokenizer.json)
        frozen.write_text(settings.to_yaml())
    world.barrier()


def _check_vocabulary(settings: Config, dataset: Dataset, model: StreamModel) -> None:
    """Raise UserError where token ids mean something else to the model than in the dataset."""
    own = tokenizer_file(settings.model.path)
    if own is None:
        _log.warning(
            "%s has no tokenizer.json: nobody can check that its tokens are those of the dataset", settings.model.path
        )
    check_vocabulary(dataset, model.backbone.get_input_embeddings().weight.shape[0], own)


@dataclass
class _Trainer:
    """The state of a run in one process."""

    settings: Config
    run: Path
    world: World
    model: StreamModel
    optimizer: torch.optim.Optimizer
    loader: Loader
    held_out: Loader | None
    cost: Cost

    def go(self) -> None:
        """All steps that are left. Raises Interrupted."""
        run, world, options = self.run, self.world, self.settings.run
        last = options.max_steps or 0
        names = [stream.name for stream in self.loader.streams]
        done = checkpoint.steps(run)
        step = 0
        if done:
            progress = checkpoint.restore(run, done[-1], self.model, self.optimizer, world)
            self.loader.load_state_dict(progress.loader)
            step = progress.step
        saved = step if done else -1
        header = columns(names)
        table = Table(run / METRICS_FILE, header, step) if world.first else None
        held_out = (
            Table(run / VALIDATION_FILE, ["step", *Tally(len(names)).means(names)], step) if world.first else None
        )
        boards = Boards(options.log, run, asdict(self.settings)) if world.first else None
        peak = peak_of(world.device, self.settings.model.precision == "bf16")
        if world.first:
            packing = self.loader.packing(0)
            _log.info(
                "%d conversations (%d too long, left out), %d packs of %d, %.2f %% padding, %d steps an epoch; %s",
                packing.conversations, self.loader.dropped, packing.packs, self.settings.data.cells,
                100 * packing.padding, packing.steps, f"going on after step {step}" if step else f"{last} steps",
            )  # fmt: skip
        with _stop_signals() as stopped, tqdm(total=last, initial=step, unit="step", disable=not world.first) as bar:
            steps = iter(self.loader)
            while step < last:
                began = time.perf_counter()
                batches = next(steps)
                share = rate_share(step, last, self.settings.optimizer)
                tally, norm, work = self._step(step, batches, share)
                step += 1
                # One sum for all: what was measured, and whether anybody was told to stop.
                counted = torch.tensor([*tally.sums.reshape(-1), *work, float(stopped.is_set())], dtype=torch.float64)
                counted = world.sum(counted)
                tally.sums = counted[: tally.sums.size].reshape(tally.sums.shape).numpy()
                work = Work(*(int(x) for x in counted[tally.sums.size : -1]))
                seconds = time.perf_counter() - began
                if table is not None and boards is not None:
                    speed = self.cost.operations(work) / seconds / world.size
                    values = {
                        "step": step,
                        **tally.means(names),
                        "learning_rate": share * self.settings.optimizer.learning_rate,
                        "gradient_norm": norm,
                        "conversations": work.conversations,
                        "positions": work.cells,
                        "positions_per_second": round(work.cells / seconds, 1),
                        "mfu": None if peak is None else round(speed / peak, 4),
                    }
                    table.add(values)
                    boards.add(step, values)
                    bar.set_postfix_str(
                        f"loss {values['loss']:.4g}" if values["loss"] is not None else "", refresh=False
                    )
                bar.update()
                stop = bool(counted[-1]) and step < last
                if step == last or step % options.save_every == 0 or stop:
                    self._save(step)
                    saved = step
                every = options.validate_every
                if self.held_out is not None and not stop and (step == last or (every and step % every == 0)):
                    means = self._validate(names)
                    if held_out is not None and boards is not None:
                        held_out.add({"step": step, **means})
                        boards.add(step, means, "validation/")
                        bar.write(f"step {step}: validation loss {means['loss']:.4f}")
                if stop:
                    break
        for closing in (table, held_out, boards):
            if closing is not None:
                closing.close()
        if step < last:
            assert saved == step
            raise Interrupted(step)

    def _step(self, step: int, batches: list[Batch], share: float) -> tuple[Tally, float, Work]:
        """One step of the optimiser on the packs of this process. Raises UserError where numbers are not finite."""
        world, settings = self.world, self.settings
        torch.manual_seed(settings.seed * 1_000_003 + step * world.size + world.rank)  # for models with dropout
        weight = torch.tensor(
            [sum(float(batch.weights.sum(dtype=np.float64)) for batch in batches)], dtype=torch.float64
        )
        total = float(world.sum(weight))
        # FSDP2 takes the mean of the gradients of all processes; the loss is a sum over them.
        scale = world.size / total if total else 0.0
        tally = Tally(len(self.loader.streams))
        work = Work(0, 0, 0, 0)
        losses: list[torch.Tensor] = []
        for batch in batches:
            loss, each = self._forward(batch)
            (loss * scale).backward()
            losses.append(each)
            work = Work(*(a + b for a, b in zip(work, work_of(batch, batch.attention), strict=True)))
        set_rates(self.optimizer, share)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = clip_grad_norm_(trained, settings.optimizer.clip or math.inf)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        for batch, each in zip(batches, losses, strict=True):
            tally.add(batch, _trained(batch), each.float().cpu().numpy())
        if not math.isfinite(norm):
            numbers = [int(number) for batch in batches for number in batch.numbers]
            raise UserError(
                f"step {step + 1}: the gradient is not finite (loss {tally.means([])['loss']}). Nothing was changed by "
                f"this step; the checkpoint before it stands. Set optimizer.learning_rate lower or warmup_steps higher, or "
                f"model.precision: fp32, and start anew; rows of the dataset in this step: {numbers[:20]}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return tally, norm, work

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of the losses of a batch, and the loss of every trained cell."""
        device = self.world.device
        trained = _trained(batch)

        def moved(values: np.ndarray, kind: torch.dtype = torch.long) -> torch.Tensor:
            return torch.as_tensor(values).to(device, kind, non_blocking=True)

        # Sharded models have their own mixed precision.
        bf16 = self.settings.model.precision == "bf16" and self.world.size == 1
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, each = self.model(
                moved(batch.ids),
                moved(batch.streams),
                moved(batch.positions),
                batch.attention.to(device),
                moved(trained),
                moved(batch.targets[trained]),
                moved(batch.weights[trained], torch.float32),
            )
        return loss, each

    @torch.no_grad()
    def _validate(self, names: list[str]) -> dict[str, float | None]:
        """The means over the held-out conversations, every trained silence counted."""
        assert self.held_out is not None
        tally = Tally(len(names))
        self.model.eval()
        try:
            for batches in self.held_out.epoch(0):
                for batch in batches:
                    tally.add(batch, _trained(batch), self._forward(batch)[1].float().cpu().numpy())
        finally:
            self.model.train()
        sums = self.world.sum(torch.from_numpy(tally.sums))
        tally.sums = sums.numpy()
        return tally.means(names)

    def _save(self, step: int) -> None:
        progress = Progress(step, self.loader.state_dict())
        checkpoint.save(self.run, progress, self.model, self.optimizer, self.world, self.settings.run.keep)


def _trained(batch: Batch) -> np.ndarray:
    """The cells of a batch with a target."""
    return np.flatnonzero(batch.kinds)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM as a wish to stop after the step; a second SIGINT stops at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stopped.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
