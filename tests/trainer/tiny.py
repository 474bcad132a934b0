"""Tiny decoders with random weights, and random stream grids with the cells that exist in either mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

from trainer.attention import Index, build_index

SILENCE = 0


def decoder(kind: str = "qwen3", vocabulary: int = 64, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A decoder of two layers, two query heads on one key head of dimension 32."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": None,
    } | options
    return AutoModelForCausalLM.from_config({"qwen3": Qwen3Config, "llama": LlamaConfig}[kind](**shape))


@dataclass(frozen=True)
class Sequence:
    """S cells of packed conversations, as arrays [S]."""

    ids: NDArray[Any]
    streams: NDArray[Any]
    rows: NDArray[Any]  # the virtual row is 0: rows are position ids
    docs: NDArray[Any]
    silent: NDArray[Any]

    def __getitem__(self, cells: NDArray[Any]) -> Sequence:
        return Sequence(*(getattr(self, name)[cells] for name in ("ids", "streams", "rows", "docs", "silent")))

    def index(self, visibility: NDArray[Any] | None, keys: bool = False) -> Index:
        return build_index(self.rows, self.streams, self.docs, None if keys else self.silent, visibility)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """ids, streams and positions."""
        return tuple(torch.as_tensor(x, dtype=torch.long) for x in (self.ids, self.streams, self.rows))  # type: ignore[return-value]

    def mask(self, visibility: NDArray[Any] | None, keys: bool = False) -> torch.Tensor:
        """Who sees whom, by the words of DESIGN §9: bool [S, S]."""
        seen = (self.docs[:, None] == self.docs) & (self.rows < self.rows[:, None])
        if visibility is not None:
            seen &= visibility[self.streams[:, None], self.streams]
        if not keys:
            seen &= ~self.silent
        np.fill_diagonal(seen, True)
        return torch.from_numpy(seen)


def grids(seed: int, heights: tuple[int, ...] = (9, 6), streams: int = 3, speech: float = 0.4) -> Sequence:
    """All cells of random grids, virtual rows included. Tokens are from 1 to 63."""
    rng = np.random.default_rng(seed)
    columns: list[tuple[NDArray[Any], ...]] = []
    for doc, height in enumerate(heights):
        row, stream = (x.reshape(-1) for x in np.indices((height + 1, streams)))
        silent = (rng.random(row.size) >= speech) | (row == 0)
        ids = np.where(silent, SILENCE, rng.integers(1, 64, row.size))
        columns.append((ids, stream, row, np.full(row.size, doc), silent))
    return Sequence(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def dropped(cells: Sequence, seed: int, inputs: int = 1, rate: float = 0.5) -> NDArray[Any]:
    """The cells that exist in mode ``skip``: the first ``inputs`` streams lose all silent cells, the others some. [S]"""
    kept = np.random.default_rng(seed).random(len(cells.ids)) < rate
    return ~cells.silent | (kept & (cells.streams >= inputs))
