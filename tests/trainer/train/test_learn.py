"""A tiny model learns to copy while it reads, exactly where the data and the visibility allow it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import decoder

from trainer.attention import build_index
from trainer.config import Config, ModelOptions, OptimizerOptions
from trainer.data import NO_TARGET, Batch, DataOptions, Kind
from trainer.distributed import World
from trainer.model.streams import StreamModel
from trainer.optimizer import make_optimizer, rate_share
from trainer.step import Stepper

LETTERS, ROWS, CONVERSATIONS = 8, 16, 5
CHANCE = math.log(LETTERS)


def batch(rng: np.random.Generator, lag: int, visibility: np.ndarray | None) -> Batch:
    """Conversations of a user who says random letters and an output that says each of them ``lag`` rows later."""
    said = rng.integers(0, LETTERS, (CONVERSATIONS, ROWS))
    row, stream = (x.reshape(-1).astype(np.int32) for x in np.indices((ROWS, 2)))
    ids = np.full((CONVERSATIONS, ROWS, 2), LETTERS)  # the token behind the letters is silence
    ids[:, :, 0] = said
    ids[:, lag:, 1] = said[:, :-lag]
    targets = np.full(ids.shape, NO_TARGET)
    targets[:, lag - 1 : -1, 1] = ids[:, lag:, 1]
    flat = ids.reshape(-1).astype(np.int32)
    targets = targets.reshape(-1).astype(np.int32)
    rows, streams = (np.tile(x, CONVERSATIONS) for x in (row, stream))
    docs = np.repeat(np.arange(CONVERSATIONS, dtype=np.int32), ROWS * 2)
    silent = flat == LETTERS
    trained = targets != NO_TARGET
    index = build_index(rows, streams, docs, silent, visibility)
    return Batch(
        flat, streams, rows, rows, docs, silent, targets, trained.astype(np.float32),
        np.where(trained, Kind.SPEECH, Kind.NONE).astype(np.int8), CONVERSATIONS, np.arange(CONVERSATIONS), index,
    )  # fmt: skip


def final_loss(lag: int, visibility: np.ndarray | None, steps: int) -> float:
    """The mean loss of the last steps."""
    settings = Config(
        dataset="",
        data=DataOptions(cells=CONVERSATIONS * ROWS * 2, packs_per_step=1),
        model=ModelOptions(path="", precision="fp32"),
        optimizer=OptimizerOptions(learning_rate=3e-3, stream_learning_rate=3e-3),
    )
    model = StreamModel(decoder(vocabulary=LETTERS + 1), 2)
    optimizer = make_optimizer(model, settings.optimizer)
    stepper = Stepper(settings, World(0, 1, torch.device("cpu")), model, optimizer, 2)
    rng = np.random.default_rng(0)
    losses = [
        stepper.step(n, [batch(rng, lag, visibility)], min(1.0, (n + 1) / 20)).tally.means(["user", "output"])[
            "loss/output"
        ]
        for n in range(steps)
    ]
    return float(np.mean([loss for loss in losses[-10:] if loss is not None]))


def test_two_rows_behind_copying_is_learnt() -> None:
    assert final_loss(2, None, 200) < 0.05


def test_one_row_behind_it_cannot_be() -> None:
    """The horizon: what is read at row r can first change what is said at row r + 2."""
    assert final_loss(1, None, 120) > 0.97 * CHANCE


def test_where_the_input_is_hidden_it_cannot_be() -> None:
    assert final_loss(2, np.eye(2, dtype=bool), 120) > 0.97 * CHANCE


@pytest.mark.parametrize("schedule", ["constant", "cosine", "cooldown"])
def test_rates(schedule: str) -> None:
    options = OptimizerOptions(schedule=schedule, warmup_steps=4, cooldown_steps=5, final_share=0.1)  # type: ignore[arg-type]
    shares = [rate_share(step, 20, options) for step in range(20)]
    assert np.allclose(shares[:4], [0.2, 0.4, 0.6, 0.8])
    assert max(shares) <= 1 and shares[4] == pytest.approx(1.0, abs=0.01)
    assert shares[14] == pytest.approx({"constant": 1, "cosine": 0.3, "cooldown": 1}[schedule], abs=0.05)
    assert shares[-1] == pytest.approx(1 if schedule == "constant" else 0.1)
    assert all(a >= b for a, b in pairwise(shares[4:]))
