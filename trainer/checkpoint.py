"""Checkpoints: everything that a run needs to go on, written beside and renamed.

    RUN/checkpoints/step-00000500/    sharded tensors (torch.distributed.checkpoint): parameters that train, optimiser state
                    …/state.json      step, state of the loader

There is no state of random generators: they are seeded anew in every step. Another number of processes can go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer

from pipeline.errors import UserError
from trainer.distributed import World
from trainer.model.streams import StreamModel

_FOLDER = "checkpoints"
_STATE = "state.json"


@dataclass(frozen=True)
class Progress:
    """Where a run is: steps done, and what the loader says of it."""

    step: int
    loader: dict[str, Any]


def steps(run: Path) -> list[int]:
    """The steps with a finished checkpoint, in order."""
    found = (run / _FOLDER).glob(f"step-*/{_STATE}")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def folder(run: Path, step: int) -> Path:
    """The directory of a checkpoint."""
    return run / _FOLDER / f"step-{step:08}"


def save(run: Path, progress: Progress, model: StreamModel, optimizer: Optimizer, world: World, keep: int) -> None:
    """Write a checkpoint; all processes call this. Then the oldest are removed, so that ``keep`` stay."""
    final = folder(run, progress.step)
    beside = final.with_name(f".{final.name}.writing")
    if world.first:
        for left in (final.parent).glob(".step-*.writing"):
            shutil.rmtree(left)
        beside.mkdir(parents=True)
    world.barrier()
    with _quiet():
        dcp.save(_state(model, optimizer), checkpoint_id=beside, no_dist=world.size == 1)
    if world.first:
        with (beside / _STATE).open("w") as file:
            json.dump({"step": progress.step, "loader": progress.loader}, file)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():
            shutil.rmtree(final)
        beside.rename(final)
        _sync(final.parent)
        for old in steps(run)[:-keep]:
            shutil.rmtree(folder(run, old))
    world.barrier()


def restore(run: Path, step: int, model: StreamModel, optimizer: Optimizer, world: World) -> Progress:
    """Load a checkpoint into a model and its optimiser, both made as they were for the run. Raises UserError."""
    path = folder(run, step)
    state = _state(model, optimizer)
    try:
        with _quiet():
            dcp.load(state, checkpoint_id=path, no_dist=world.size == 1)
        document = json.loads((path / _STATE).read_text())
    except (dcp.api.CheckpointException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); remove this directory to go on from the checkpoint before it"
        ) from None
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=_options(strict=False),
    )
    return Progress(document["step"], document["loader"])


def restore_model(run: Path, step: int, model: StreamModel) -> None:
    """Load the parameters alone, in one process."""
    wanted = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    with _quiet():
        dcp.load({"model": wanted}, checkpoint_id=folder(run, step), no_dist=True)


def _state(model: StreamModel, optimizer: Optimizer) -> dict[str, Any]:
    parameters, moments = get_state_dict(model, optimizer, options=_options())
    return {"model": parameters, "optimizer": moments}


def _options(strict: bool = True) -> StateDictOptions:
    # Flat: the state of every parameter under its own name, whichever groups there are and however it is sharded.
    return StateDictOptions(ignore_frozen_params=True, flatten_optimizer_state_dict=True, strict=strict)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """One process is meant; torch warns of it all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _sync(path: Path) -> None:
    """Make a rename durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
