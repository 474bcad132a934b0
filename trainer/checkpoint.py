"""Checkpoints: everything that a run needs to go on, written beside and renamed.

    RUN/checkpoints/step-00000500/    sharded tensors (torch.distributed.checkpoint): parameters that train, optimiser state
                    …/state.json      step, state of the loader, hash of the frozen weights

There is no state of random generators: they are seeded anew in every step. Another number of processes can go on.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer

from pipeline.errors import UserError
from trainer.distributed import World
from trainer.files import beside_of, complete, put_folder, write
from trainer.model.streams import StreamModel
from trainer.model.vocabulary import tables

_FOLDER = "checkpoints"
_STATE = "state.json"


@dataclass(frozen=True)
class Progress:
    """Where a run is: steps done, what the loader says of it, and which weights it builds on (:func:`base_of`)."""

    step: int
    loader: dict[str, Any]
    base: str | None


def steps(run: Path) -> list[int]:
    """The steps with a finished checkpoint, in order."""
    found = (run / _FOLDER).glob(f"step-*/{_STATE}")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def folder(run: Path, step: int) -> Path:
    """The directory of a checkpoint."""
    return run / _FOLDER / f"step-{step:08}"


def standing(run: Path) -> str:
    """What there is to go on from, in words."""
    done = steps(run)
    return f"the checkpoint of step {done[-1]} stands" if done else "there is no checkpoint yet"


def incomplete(run: Path) -> list[Path]:
    """Folders with the name of a checkpoint that are none: the file that is written last is not there."""
    return sorted(path for path in (run / _FOLDER).glob("step-*") if not (path / _STATE).exists())


def tidy(run: Path) -> None:
    """Delete what a run that was killed had begun to write: it takes the space that the next checkpoint needs. What it
    had moved aside gets its name again, or is deleted where something new has that.
    """
    for left in (*run.glob(".*.writing"), *(run / _FOLDER).glob(".step-*.writing")):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
    for aside in (*run.glob(".*.old"), *(run / _FOLDER).glob(".step-*.old")):
        final = aside.with_name(aside.name[1:].removesuffix(".old"))
        if final.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(final)


def base_of(model: StreamModel) -> str | None:
    """A hash over the weights that stay as they are, which no checkpoint holds; None where all of them train."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    if not frozen:
        return None
    both = tables(model.backbone)

    def digest(weights: torch.Tensor) -> bytes:
        if model.row_ids is not None and any(weights is table for table in both):
            weights = weights.index_fill(0, model.row_ids, 0)  # these rows train: separate ones stand for them
        name = f"{weights.dtype} {list(weights.shape)}".encode()
        return sha256(name + sha256(weights.reshape(-1).view(torch.uint8).numpy().data).digest()).digest()

    with ThreadPoolExecutor() as threads:
        return sha256(b"".join(threads.map(digest, frozen))).hexdigest()


def save(run: Path, progress: Progress, model: StreamModel, optimizer: Optimizer, world: World, keep: int) -> None:
    """Write a checkpoint; all processes call this. Then the oldest are removed, so that ``keep`` stay.

    Raises UserError where the disk is at fault. Nothing stays of a checkpoint that was not finished.
    """
    final = folder(run, progress.step)
    beside = beside_of(final)
    with complete(final, beside):
        if world.first:
            beside.mkdir(parents=True)
        world.barrier()
        try:
            with _quiet():
                dcp.save(_state(model, optimizer), checkpoint_id=beside, no_dist=world.size == 1)
        except dcp.api.CheckpointException as error:  # whatever happens amid it, this included, is wrapped
            if any(isinstance(cause, KeyboardInterrupt) for cause, _ in error.failures.values()):
                raise KeyboardInterrupt from None
            raise
        if world.first:
            write(beside / _STATE, json.dumps(asdict(progress)))
            put_folder(beside, final)
    if world.first:
        for old in steps(run)[:-keep]:
            shutil.rmtree(folder(run, old))
    world.barrier()


def restore(run: Path, step: int, model: StreamModel, optimizer: Optimizer, world: World, base: str | None) -> Progress:
    """Load a checkpoint into a model and its optimiser, both made as they were for the run. Raises UserError, also where
    the frozen weights, ``base``, are others.
    """
    path = folder(run, step)
    progress = _progress(path, base)
    state = _state(model, optimizer)
    _load(path, state, world.size)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=_options(strict=False),
    )
    return progress


def restore_model(run: Path, step: int, model: StreamModel) -> None:
    """Load the parameters alone, in one process. Raises UserError."""
    _progress(folder(run, step), base_of(model))
    wanted = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    _load(folder(run, step), {"model": wanted}, 1)


def _progress(path: Path, base: str | None) -> Progress:
    try:
        progress = Progress(**json.loads((path / _STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from None
    if progress.base != base:
        raise UserError(
            f"{path}: its adapters were trained on other weights than those that are now in model.path; put the old model "
            f"back there, or start a new run"
        )
    return progress


def _load(path: Path, state: dict[str, Any], processes: int) -> None:
    try:
        with _quiet():
            dcp.load(state, checkpoint_id=path, no_dist=processes == 1)
    except (dcp.api.CheckpointException, OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> UserError:
    reason = str(error).strip().splitlines()[-1]  # torch's is a whole traceback
    return UserError(f"{path}: cannot be read ({reason}); remove this directory to go on from the checkpoint before it")


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
