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
STREAMS = (1, 2, 3, 5, 10, 24, 90, 200)


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
    def pairs(self) -> int:
        """How many pairs attend, beside every cell to itself."""
        return int(mask(self).sum()) - self.size

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
    """Cells number ``seed``: policies, stream counts, padding, holes and silence in turn, so that all pairs occur.

    There are about ``most`` cells, and more where two or three rows of many streams take more: a single row, in which
    cells see nobody but themselves, is the exception for every number of streams.
    """
    rng = np.random.default_rng(seed)
    count = STREAMS[rng.integers(len(STREAMS))]
    many = count > 24
    name = POLICIES[seed % len(POLICIES)]
    visibility = policy(name, count, rng)
    if visibility is not None and ((many and name in ("earlier", "random")) or (count > 20 and rng.random() < 0.75)):
        visibility = visibility[rng.integers(0, count, 4)][rng.integers(0, 4, count)]  # few classes, many streams
    drop = ([0.0, 0.5, 0.7, 0.8] if many else [0.0, 0.0, 0.2, 0.7])[rng.integers(4)]
    conversations = int(rng.choice([1, 1, 2] if many else [1, 1, 2, 5]))
    tallest = max(3, most // (count * conversations))
    parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    doc = 0
    for _ in range(conversations):
        if rng.random() < 0.25:
            padding = int(rng.integers(1, 9))
            parts.append((np.zeros(padding, int), np.zeros(padding, int), np.full(padding, -1)))
        height = 1 if rng.random() < 0.1 else int(rng.integers(2, tallest + 1))
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
    silence = rng.choice([0.0, 0.3, 0.7, 1.0], p=[0.4, 0.28, 0.28, 0.04])
    silent = None if silence == 0 else rng.random(rows.size) < silence
    return Cells(rows, streams, docs, silent, visibility)


def with_pairs(least: int, cells: int, most: int = 80) -> list[int]:
    """Numbers of draws in which ``least`` pairs or more attend among at most so many cells, in few classes, as each takes
    the interpreter its time: the first of every policy that lets anybody see another."""
    found: dict[str, int] = {}
    for seed in range(40 * len(POLICIES)):
        name = POLICIES[seed % len(POLICIES)]
        drawn = draw(seed, most)
        if name not in found and drawn.size <= cells and drawn.pairs >= least and len(drawn.index.classes) <= 12:
            found[name] = seed
    assert found.keys() == set(POLICIES) - {"nobody"}
    return sorted(found.values())


def tensors(
    seed: int, size: int, heads: int, key_heads: int, dim: int, dtype: torch.dtype, batch: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v that want gradients, and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)

    def normal(count: int) -> torch.Tensor:
        return torch.randn(batch, count, size, dim, generator=generator).to(dtype)

    q, k, v = (normal(count).requires_grad_() for count in (heads, key_heads, key_heads))
    return q, k, v, normal(heads)
