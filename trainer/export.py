"""From a checkpoint to a plain Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.errors import UserError
from trainer import checkpoint, config
from trainer.files import check_folder
from trainer.model import description
from trainer.model.build import build
from trainer.model.store import TOKENIZER_FILE, write

CONFIG_FILE = "config.yaml"


def export(run: Path, directory: Path, step: int | None = None, replace: bool = False) -> int:
    """Write the model of a checkpoint, by default of the newest, in one process, on the CPU; returns its step.

    Weights are bfloat16 where products were made in it, else float32. Raises UserError, also for a directory that is there
    already, unless it is to be replaced.
    """
    frozen, described = run / CONFIG_FILE, description.read(run)
    done = checkpoint.steps(run)
    if not frozen.exists() or described is None:
        raise UserError(f"{run}: no run: there is no {CONFIG_FILE} and {description.FILE} in it")
    if not done or (step is not None and step not in done):
        raise UserError(f"{run}: no checkpoint{'' if step is None else f' of step {step}'}; there are {done or 'none'}")
    if directory.exists() and not replace:
        raise UserError(f"--out {directory}: exists; give another directory, or remove this one first")
    check_folder(directory)
    settings = config.read(frozen, {})
    try:
        model = build(settings.model, described, settings.seed, settings.model.precision == "bf16")
    except UserError as error:  # speaks of options that this command does not have
        raise UserError(f"{frozen}: {error}") from None
    chosen = done[-1] if step is None else step
    checkpoint.restore_model(run, chosen, model)
    dtype = torch.bfloat16 if settings.model.precision == "bf16" else torch.float32
    write(model, described, (run / TOKENIZER_FILE).read_text(), directory, dtype)
    return chosen
