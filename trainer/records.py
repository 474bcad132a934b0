"""What a run leaves for people to look at: ``metrics.csv``, ``validation.csv``, boards, a progress bar.

One process writes; in the others the same calls do nothing.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from pipeline.errors import UserError
from trainer.config import Config
from trainer.files import named, new_file
from trainer.metrics import KINDS

METRICS_FILE, VALIDATION_FILE = "metrics.csv", "validation.csv"
_log = logging.getLogger(__name__)
#: Without a terminal a line is logged instead of a bar, every so many seconds at most.
_SECONDS = 10.0
#: A bar that has not moved for so many seconds counts the packs of its step.
_STILL = 1.0

Values = Mapping[str, float | None]


def columns(streams: Sequence[str]) -> list[str]:
    """The columns of ``validation.csv`` for these streams: step and losses."""
    return ["step", "loss", *(f"loss/{name}" for name in streams), *KINDS.values()]


#: What ``metrics.csv`` has besides.
_COURSE = ("learning_rate", "gradient_norm", "conversations", "positions", "positions_per_second", "mfu")


class Records:
    """The records of a run that goes on after ``step`` (0: begins), in the process that writes."""

    def __init__(self, run: Path, settings: Config, streams: Sequence[str], step: int, first: bool) -> None:
        self._first = first
        self._said = 0.0
        self._drawn = time.monotonic()
        self._loss = ""
        if first:
            last = settings.run.max_steps
            self._steps = Table(run / METRICS_FILE, [*columns(streams), *_COURSE], step)
            self._validations = Table(run / VALIDATION_FILE, columns(streams), step)
            self._boards = Boards(settings.run.log, run, settings)
            # None: where there is no terminal, no bar.
            self._bar = tqdm(total=last, initial=step, unit="step", disable=None, dynamic_ncols=True)

    def step(self, step: int, values: Values) -> None:
        """A step is done."""
        if not self._first:
            return
        self._steps.add(step, values)
        self._boards.add(step, values)
        loss = "no loss" if values["loss"] is None else f"loss {values['loss']:.4g}"
        now = time.monotonic()
        self._drawn, self._loss = now, f"{loss}, "
        self._bar.set_postfix_str(loss, refresh=False)
        self._bar.update()
        if self._bar.disable and (now - self._said > _SECONDS or step == self._bar.total):
            _log.info("step %d: %s, %s positions/s", step, loss, values["positions_per_second"])
            self._said = now

    def pack(self, done: int, of: int) -> None:
        """So many packs of a step are done: what moves where a step takes long."""
        now = time.monotonic()
        if self._first and done < of and now - self._drawn > _STILL:
            self._drawn = now
            self._bar.set_postfix_str(f"{self._loss}pack {done} of {of}")

    def validation(self, step: int, values: Values) -> None:
        """A validation is done."""
        if not self._first:
            return
        self._validations.add(step, values)
        self._boards.add(step, values, "validation/")
        with contextlib.suppress(OSError):  # nobody reads it any more
            self._bar.write(f"step {step}: validation loss {values['loss'] or 0:.4f}")

    def close(self) -> None:
        """Nothing more comes."""
        if self._first:
            self._bar.close()
            self._boards.close()
            self._steps.close()
            self._validations.close()


class Table:
    """A CSV file that grows by a line per step. A run that goes on drops what is behind its checkpoint."""

    def __init__(self, path: Path, header: Sequence[str], after: int) -> None:
        rows = [row for row in read_table(path) if int(row["step"]) <= after] if path.exists() else []
        self._header = list(header)
        with new_file(path) as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._header)
            writer.writeheader()
            writer.writerows(rows)
        self._path = path
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, self._header)

    def add(self, step: int, values: Values) -> None:
        """Add a line; None becomes an empty field. Floats are written so that they read back exactly."""
        with named(self._path):
            self._writer.writerow({name: values.get(name) for name in self._header} | {"step": step})
            self._file.flush()

    def close(self) -> None:
        """Nothing more comes."""
        with named(self._path):
            self._file.close()


def read_table(path: Path) -> list[dict[str, str]]:
    """The lines of such a file. A line that was cut short by the end of a process is left out."""
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]


#: Module and package of each.
_BOARDS = {"tensorboard": ("torch.utils.tensorboard", "tensorboard"), "wandb": ("wandb", "wandb")}


class Boards:
    """TensorBoard and wandb, where they were asked for."""

    def __init__(self, names: Sequence[str], run: Path, settings: Config) -> None:
        self._tensorboard: Any = None
        self._wandb: Any = None
        if "tensorboard" in names:
            self._tensorboard = _needs(*_BOARDS["tensorboard"]).SummaryWriter(str(run / "tensorboard"))
        if "wandb" in names:
            # The same name every time: a run that goes on continues its curves.
            self._wandb = _needs(*_BOARDS["wandb"]).init(
                dir=str(run), id=run.name, resume="allow", config=asdict(settings)
            )

    def add(self, step: int, values: Values, prefix: str = "") -> None:
        """Log the numbers of a step."""
        numbers = {prefix + name: value for name, value in values.items() if value is not None}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        """Nothing more comes."""
        for board, end in ((self._tensorboard, "close"), (self._wandb, "finish")):
            if board is not None:
                getattr(board, end)()


def check_boards(names: Sequence[str]) -> None:
    """Raise UserError where a board is not installed."""
    for name in names:
        _needs(*_BOARDS[name])


def _needs(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"run.log: {package} is not installed: pip install {package}, or leave it out") from None
