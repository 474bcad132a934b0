"""One step of the optimiser: packs in, what was measured out.

The loss of a step is one weighted mean: over all cells of all packs, on all processes. A step is a function of parameters,
optimiser state, packs and its own number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from pipeline.errors import UserError
from trainer.config import Config
from trainer.data import Batch
from trainer.distributed import World
from trainer.metrics import Tally, Work, work_of
from trainer.model.streams import StreamModel
from trainer.optimizer import set_rates


class Measured(NamedTuple):
    """What a step measured, of the packs of this process; the norm is that of the whole gradient, before clipping."""

    tally: Tally
    work: Work
    norm: float


class Stepper:
    """Does steps on one process. The model is sharded where there are several."""

    def __init__(
        self, settings: Config, world: World, model: StreamModel, optimizer: torch.optim.Optimizer, streams: int
    ) -> None:
        self._settings, self._world, self._model, self._optimizer = settings, world, model, optimizer
        self._streams = streams

    def step(
        self, number: int, batches: list[Batch], share: float, done: Callable[[int, int], None] | None = None
    ) -> Measured:
        """Step ``number``, counted from 0, at this share of the learning rates. ``done``: told how many packs are, of all.

        Raises UserError where numbers are not finite; then nothing has been changed.
        """
        world, settings = self._world, self._settings
        # For models with dropout. Mixed, because torch's generator on the CPU looks at the lower 32 bits alone.
        drawn = np.random.SeedSequence((settings.seed, number, world.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(drawn[0]))
        weight = sum(float(batch.weights.sum(dtype=np.float64)) for batch in batches)
        total = float(world.sum(torch.tensor([weight], dtype=torch.float64)))
        # FSDP2 takes the mean of the gradients of all processes; the loss is a sum over them.
        scale = world.size / total if total else 0.0
        losses = []
        for count, batch in enumerate(batches, 1):
            loss, each = self._forward(batch)
            (loss * scale).backward()
            losses.append(each)
            if done is not None:
                done(count, len(batches))
        trained = [p for p in self._model.parameters() if p.requires_grad]
        gradient: Any = clip_grad_norm_(trained, settings.optimizer.clip or math.inf)
        norm = float(gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient)
        tally = self._tally(zip(batches, losses, strict=True))
        if not math.isfinite(norm):
            numbers = world.all([int(number) for batch in batches for number in batch.numbers])
            tally.sums = world.sum(torch.from_numpy(tally.sums)).numpy()
            raise UserError(
                f"step {number + 1}: loss {tally.means([])['loss']}, gradient norm {norm}: not finite. This step changed "
                f"nothing. {self._remedy()}. Rows of the dataset in this step: {numbers[:20]}"
            )
        set_rates(self._optimizer, share)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Measured(tally, Work.total(work_of(batch) for batch in batches), norm)

    @torch.no_grad()
    def check_parameters(self, number: int) -> None:
        """Raise UserError, in all processes alike, where a trained parameter is not finite after ``number`` steps."""
        trained = [p.to_local() if isinstance(p, DTensor) else p for p in self._model.parameters() if p.requires_grad]
        here = [p for p in trained if p.numel()]
        largest = torch._foreach_norm(here, math.inf) if here else []  # of squares the sum could be infinite
        spoilt = sum((~value.isfinite()).double() for value in largest)
        count = int(self._world.sum(torch.tensor([float(spoilt)], dtype=torch.float64)))
        if count:
            raise UserError(
                f"step {number}: {count} of the trained parameters (tensors) are no longer finite: the optimizer's steps "
                f"were too large. They are not saved. {self._remedy()}"
            )

    def _remedy(self) -> str:
        """What helps against numbers that are not finite."""
        ways = ["optimizer.learning_rate lower", "optimizer.warmup_steps higher"]
        if self._settings.model.precision != "fp32":
            ways.append("model.precision: fp32")
        return f"Set {', '.join(ways[:-1])} or {ways[-1]}, and start anew"

    @torch.no_grad()
    def validate(self, steps: Iterable[list[Batch]]) -> Tally:
        """The losses of all packs of this process."""
        self._model.eval()
        try:
            return self._tally((batch, self._forward(batch)[1]) for batches in steps for batch in batches)
        finally:
            self._model.train()

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of the losses of a pack, and the loss of every trained cell."""
        device = self._world.device
        trained = trained_cells(batch)
        assert batch.attention is not None  # the loader is asked for it

        def moved(values: NDArray[Any], kind: torch.dtype = torch.long) -> torch.Tensor:
            return torch.as_tensor(values).to(device, kind, non_blocking=True)

        # Sharded models have their own mixed precision.
        bf16 = self._settings.model.precision == "bf16" and self._world.size == 1
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss: tuple[torch.Tensor, torch.Tensor] = self._model(
                moved(batch.ids),
                moved(batch.streams),
                moved(batch.positions),
                batch.attention.to(device),
                moved(trained),
                moved(batch.targets[trained]),
                moved(batch.weights[trained], torch.float32),
            )
        return loss

    def _tally(self, losses: Iterable[tuple[Batch, torch.Tensor]]) -> Tally:
        tally = Tally(self._streams)
        for batch, each in losses:
            tally.add(batch, trained_cells(batch), each.cpu().numpy())
        return tally


def trained_cells(batch: Batch) -> NDArray[np.int64]:
    """The cells of a pack that have a target."""
    return np.flatnonzero(batch.kinds)
