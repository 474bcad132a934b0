"""The indices of many sequences at once are those of each alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from cells import POLICIES, policy

from trainer.attention import Index, build_index
from trainer.attention.index import build_indices


def same(one: Index, other: Index) -> bool:
    return all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(10))
def test_many_at_once_are_each_alone(name: str, seed: int) -> None:
    """Also where padding, silence or the streams of a class are missing in some of them."""
    rng = np.random.default_rng(seed)
    size, sequences, count = int(rng.integers(1, 60)), int(rng.integers(1, 5)), int(rng.integers(1, 6))
    docs = np.sort(rng.integers(0, 4, (sequences, size)))
    docs[:, size - int(rng.integers(0, size)) :] = -1
    rows = rng.integers(0, 8, (sequences, size))
    for doc, row in zip(docs, rows, strict=True):
        for number in set(doc.tolist()):
            row[doc == number] = np.sort(row[doc == number])
    streams = rng.integers(0, count, (sequences, size))
    streams[rng.random(sequences) < 0.4] = 0
    matrix = policy(name, count, rng)
    for silent in (None, rng.random((sequences, size)) < 0.4):
        made = build_indices(rows, streams, docs, silent, matrix)
        alone = [
            build_index(rows[i], streams[i], docs[i], None if silent is None else silent[i], matrix)
            for i in range(sequences)
        ]
        assert len(made) == sequences
        assert all(same(one, other) for one, other in zip(made, alone, strict=True))
        assert not any(np.shares_memory(a.lo.numpy(), b.lo.numpy()) for a, b in pairwise(made))


def test_each_sequence_is_checked() -> None:
    rows, docs = np.zeros((2, 3), int), np.array([[0, 1, 2], [0, 0, 1]])
    build_indices(rows, rows, docs)
    with pytest.raises(ValueError, match="sorted by doc"):
        build_indices(rows, rows, np.array([[0, 1, 2], [1, 1, 0]]))
    with pytest.raises(ValueError, match="sorted by row"):
        build_indices(np.array([[5, 6, 7], [0, 1, 0]]), rows, np.zeros((2, 3), int))
    with pytest.raises(ValueError, match=r"arrays \[P, S\]"):
        build_indices(rows, rows, docs[0])
    assert build_indices(rows[:0], rows[:0], docs[:0]) == []
