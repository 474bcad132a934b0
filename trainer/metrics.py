"""What is measured in a step: losses by stream and by kind of target, speed, share of the device's peak."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data import Batch, Kind
from trainer.model.streams import StreamModel
from trainer.model.vocabulary import tables

KINDS = {Kind.SPEECH: "speech", Kind.START: "start", Kind.STOP: "stop", Kind.SILENCE: "silence"}

#: bfloat16 operations per second without sparsity, by what the device is called.
_PEAKS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


class Tally:
    """Weighted losses of trained cells: all of them, by stream and by kind. Sums may be added over processes."""

    def __init__(self, streams: int) -> None:
        self.streams = streams
        #: Sums of weight · loss and of weights: all cells, every stream, every kind. float64 [1 + C + 5, 2]
        self.sums = np.zeros((1 + streams + len(Kind), 2))

    def add(self, batch: Batch, trained: NDArray[np.int64], losses: NDArray[np.float32]) -> None:
        """Count the trained cells of a batch, with the loss of each."""
        weight = batch.weights[trained].astype(np.float64)
        for places, count, begin in (
            (np.zeros(len(trained), np.int64), 1, 0),
            (batch.streams[trained], self.streams, 1),
            (batch.kinds[trained], len(Kind), 1 + self.streams),
        ):
            for column, values in enumerate((weight * losses, weight)):
                self.sums[begin : begin + count, column] += np.bincount(places, values, minlength=count)

    def means(self, names: Sequence[str]) -> dict[str, float | None]:
        """Weighted means: ``loss``, ``loss/STREAM``, and ``speech``, ``start``, ``stop``, ``silence``; None: no such cell."""
        with np.errstate(invalid="ignore"):
            means = [float(a / b) if b else None for a, b in self.sums]
        by_stream = dict(zip((f"loss/{name}" for name in names), means[1:], strict=False))
        by_kind = {word: means[1 + self.streams + kind] for kind, word in KINDS.items()}
        return {"loss": means[0]} | by_stream | by_kind


class Work(NamedTuple):
    """What was computed: conversations, cells of theirs, cells with a target, pairs of cells that attend."""

    conversations: int
    cells: int
    trained: int
    pairs: int

    @staticmethod
    def total(parts: Iterable[Work]) -> Work:
        """The sum."""
        return Work(*(sum(column) for column in zip(*parts, strict=True)))


def work_of(batch: Batch) -> Work:
    """The work in a pack that has its index."""
    index = batch.attention
    assert index is not None
    pairs = int((index.hi - index.lo).sum(dtype=torch.int64)) + len(index)
    return Work(batch.conversations, int((batch.docs >= 0).sum()), int((batch.kinds > 0).sum()), pairs)


class Cost(NamedTuple):
    """What forward and backward of a model take: operations per cell, per trained cell, per pair of cells."""

    cell: float
    trained: float
    pair: float

    def operations(self, work: Work) -> float:
        """Operations for some work; nothing that is computed twice counts twice."""
        return self.cell * work.cells + self.trained * work.trained + self.pair * work.pairs


def cost_of(model: StreamModel) -> Cost:
    """2 operations per weight and cell forward; as many for either gradient; of attention 4 · head dim per pair and head
    forward and 8 backward. Weights that are frozen need one gradient less, experts work for their share of the cells."""
    backbone = model.backbone
    config = backbone.config.get_text_config()
    both = tables(backbone)
    head = both[1]
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
    share = (getattr(config, "num_experts_per_tok", None) or experts) / experts
    cell = sum(
        (6 if p.requires_grad else 4) * p.numel() * (share if ".experts." in name else 1)
        for name, p in backbone.named_parameters()
        if p.ndim >= 2 and all(p is not table for table in both)
    )
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Cost(
        cell,
        (6 if head.requires_grad else 4) * head.numel(),
        12 * dim * config.num_attention_heads * config.num_hidden_layers,
    )


def peak_of(device: torch.device, bf16: bool) -> float | None:
    """The device's operations per second, where they are known."""
    if device.type != "cuda" or not bf16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for word, peak in _PEAKS.items() if re.search(rf"\b{word}\b", name)), None)
