"""Fine-tuning a Hugging Face decoder on stream grids, with a fused stream-mask kernel.

>>> import trainer
>>> model, layout, tokenizer, description = trainer.load("run/model")        # doctest: +SKIP

The command line is ``trainer train``. Torch lives here and nowhere else in the project.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from trainer.model.store import Loaded


def load(directory: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Loaded:
    """Open a model that the trainer exported; see :func:`trainer.model.store.load`."""
    from trainer.model import store

    return store.load(directory, device, dtype)
