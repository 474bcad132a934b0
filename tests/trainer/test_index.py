"""The index against the definition of the mask, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cells import POLICIES, Cells, draw, mask, policy

from trainer.attention import build_index
from trainer.attention.reference import dense_mask


def test_most_draws_have_pairs() -> None:
    """For few streams and for many: otherwise the tests below would prove little."""
    drawn = [draw(seed, most=300) for seed in range(300)]
    streams = np.array([len(np.unique(cells.streams)) for cells in drawn])
    pairs = np.array([cells.pairs > 0 for cells in drawn])
    for few, many in ((1, 1), (2, 24), (25, 90), (91, 200)):
        assert pairs[(streams >= few) & (streams <= many)].mean() > 0.6
    assert pairs.sum() > 200 and not pairs.all()


@pytest.mark.parametrize("seed", range(300))
def test_the_index_is_the_mask(seed: int) -> None:
    cells = draw(seed, most=300)
    index = cells.index
    assert torch.equal(dense_mask(index), mask(cells))


@pytest.mark.parametrize("seed", range(100))
def test_both_sides_say_the_same_and_never_go_back(seed: int) -> None:
    index = draw(seed, most=300).index
    query, key = torch.arange(len(index))[:, None], torch.arange(len(index.keys))
    from_queries = (index.lo[:, None] <= key) & (key < index.hi[:, None])
    from_keys = (index.seen_lo <= query) & (query < index.seen_hi)
    assert torch.equal(from_queries, from_keys)
    for bound in (index.lo, index.hi, index.seen_lo, index.seen_hi):
        assert (bound.diff() >= 0).all()
    assert torch.equal(index.queries.sort().values, torch.arange(len(index), dtype=torch.int32))


@pytest.mark.parametrize("name", POLICIES)
def test_streams_that_read_alike_share_a_list(name: str) -> None:
    rng = np.random.default_rng(0)
    matrix = policy(name, 6, rng)
    rows, streams = (x.reshape(-1) for x in np.indices((4, 6)))
    index = build_index(rows, streams, np.zeros(24, int), visibility=matrix)
    classes = 1 if matrix is None else len({tuple(row) for row in matrix.tolist()})
    assert len(index.classes) == classes + 1
    assert index.classes[-1] == len(index.keys)


def test_silent_cells_are_not_in_the_lists() -> None:
    silent = np.array([True, False, False, True])
    index = build_index(np.arange(4), np.zeros(4, int), np.zeros(4, int), silent)
    assert index.keys.tolist() == [1, 2]
    assert index.hi.tolist() == [0, 0, 1, 2]


def test_numpy_and_torch_give_the_same() -> None:
    cells = draw(4)
    given = [cells.rows, cells.streams, cells.docs, cells.silent, cells.visibility]
    other = build_index(*(None if x is None else torch.from_numpy(x) for x in given))
    assert all(torch.equal(a, b) for a, b in zip(vars(cells.index).values(), vars(other).values(), strict=True))


def test_memory_is_a_few_integers_per_cell() -> None:
    index = build_index(np.arange(1000), np.zeros(1000, int), np.zeros(1000, int))
    assert sum(x.nbytes for x in vars(index).values()) <= 6 * 4 * 1000 + 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [0, 1, 0, 0]}, "sorted by row"),
        ({"docs": [1, 1, 0, 0], "rows": [0, 0, 0, 0]}, "sorted by doc"),
        ({"docs": [0, -1, 0, 0], "rows": [0, 0, 1, 1]}, "stand together"),
        ({"docs": [-2, 0, 0, 0]}, "padding"),
        ({"docs": [0, 0, 0]}, "docs must be integers"),
        ({"rows": [0.0, 0.0, 1.0, 1.0]}, "rows must be integers"),
        ({"silent": [0, 0, 1, 1]}, "silent must be bool"),
        ({"silent": [True]}, "silent must be bool"),
        ({"visibility": [[True, True]]}, "visibility must be bool"),
        ({"visibility": [[True]]}, "streams must be from 0 to 0"),
        ({"streams": [0, -1, 0, 1], "visibility": np.eye(2, dtype=bool)}, "streams must be from 0 to 1"),
        ({"rows": np.zeros(0, int), "docs": np.zeros(0, int)}, "no cells"),
    ],
)
def test_refused(change: dict[str, list[int]], message: str) -> None:
    given = {"rows": [0, 0, 1, 1], "streams": [0, 1, 0, 1], "docs": [0, 0, 0, 0]} | change
    with pytest.raises(ValueError, match=message):
        build_index(**{name: np.asarray(value) for name, value in given.items()})


def test_padding_may_stand_anywhere_and_sees_itself() -> None:
    cells = Cells(*(np.array(x) for x in ([0, 0, 1, 5, 5, 0, 1], [0] * 7, [-1, 4, 4, -1, -1, 7, 7])))
    expected = torch.eye(7, dtype=torch.bool)
    expected[2, 1] = expected[6, 5] = True
    assert torch.equal(dense_mask(cells.index), expected)
