"""Random cells of every kind that a grid can have, and attention over them by its definition, dense and in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.attention import Index, build_index

POLICIES = ("default", "everyone", "earlier", "own", "own and first", "nobody", "one sees nobody", "pairs", "random")


@dataclass(frozen=True)
class Cells:
    """What :func:`build_index` takes."""

    rows: NDArray[Any]
    streams: NDArray[Any]
    docs: NDArray[Any]
    silent: NDArray[Any] | None = None
    visibility: NDArray[Any] | None = None

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def index(self) -> Index:
        return build_index(self.rows, self.streams, self.docs, self.silent, self.visibility)


def mask(cells: Cells) -> torch.Tensor:
    """DESIGN §9, word by word: bool [S, S], row = who reads."""
    rows, streams, docs = cells.rows, cells.streams, cells.docs
    seen = (docs[:, None] == docs) & (docs >= 0) & (rows < rows[:, None])
    if cells.visibility is not None:
        seen &= cells.visibility[streams[:, None], streams]
    if cells.silent is not None:
        seen &= ~cells.silent
    np.fill_diagonal(seen, True)
    return torch.from_numpy(seen)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cells: Cells, scale: float | None = None) -> torch.Tensor:
    """Attention in float64, by softmax and torch's own gradients."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * (scale or 1 / math.sqrt(q.shape[-1]))
    return scores.masked_fill(~mask(cells), -math.inf).softmax(-1) @ v


def policy(name: str, streams: int, rng: np.random.Generator) -> NDArray[Any] | None:
    """A visibility matrix [C, C]."""
    own = np.eye(streams, dtype=bool)
    match name:
        case "default":
            return None
        case "everyone":
            return np.ones((streams, streams), dtype=bool)
        case "earlier":
            return np.tri(streams, dtype=bool)
        case "own":
            return own
        case "own and first":
            own[:, 0] = True
            return own
        case "nobody":
            return np.zeros((streams, streams), dtype=bool)
        case "one sees nobody":
            made = np.ones((streams, streams), dtype=bool)
            made[rng.integers(streams)] = False
            return made
        case "pairs":
            return (np.arange(streams)[:, None] // 2) == (np.arange(streams) // 2)
        case _:
            return own | (rng.random((streams, streams)) < 0.5)


def draw(seed: int, most: int = 80) -> Cells:
    """Cells number ``seed``: policies, stream counts, padding, holes and silence in turn, so that all pairs occur."""
    rng = np.random.default_rng(seed)
    count = [1, 2, 3, 5, 10, 24, 90, 200][rng.integers(8)]
    visibility = policy(POLICIES[seed % len(POLICIES)], count, rng)
    if count > 20 and visibility is not None and seed % 3:
        visibility = visibility[rng.integers(0, count, 4)][rng.integers(0, 4, count)]  # few classes, many streams
    drop = [0.0, 0.0, 0.2, 0.7][rng.integers(4)]
    conversations = int(rng.choice([1, 1, 2, 5]))
    parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    doc = 0
    for _ in range(conversations):
        if rng.random() < 0.25:
            padding = int(rng.integers(1, 9))
            parts.append((np.zeros(padding, int), np.zeros(padding, int), np.full(padding, -1)))
        longest = max(1, most // (count * conversations))
        height = int(rng.integers(1, longest + 1))
        row, stream = (x.reshape(-1) for x in np.indices((height, count)))
        row = row + rng.integers(3)
        kept = rng.random(row.size) >= drop
        kept[rng.integers(row.size)] = True
        parts.append((row[kept], stream[kept], np.full(kept.sum(), doc)))
        doc += int(rng.integers(1, 4))
    if rng.random() < 0.25:
        padding = int(rng.integers(1, 20))
        parts.append((np.zeros(padding, int), np.zeros(padding, int), np.full(padding, -1)))
    rows, streams, docs = (np.concatenate(column) for column in zip(*parts, strict=True))
    silence = [None, None, 0.3, 0.7, 1.0][rng.integers(5)]
    silent = None if silence is None else rng.random(rows.size) < silence
    return Cells(rows, streams, docs, silent, visibility)


def tensors(
    seed: int, size: int, heads: int, key_heads: int, dim: int, dtype: torch.dtype, batch: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v that want gradients, and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)

    def normal(count: int) -> torch.Tensor:
        return torch.randn(batch, count, size, dim, generator=generator).to(dtype)

    q, k, v = (normal(count).requires_grad_() for count in (heads, key_heads, key_heads))
    return q, k, v, normal(heads)
