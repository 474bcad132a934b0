"""The order of an epoch, and packs: every conversation once, as full as they get."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order import permutation
from trainer.data.pack import CHUNK, Packs, pack


def test_an_order_holds_every_number_once_and_depends_on_all_it_is_given() -> None:
    orders = [permutation(1000, purpose, seed, epoch) for purpose in ("a", "b") for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert len({order.tobytes() for order in orders}) == len(orders)
    assert np.array_equal(orders[0], permutation(1000, "a", 0, 0))


def test_an_order_is_the_same_in_every_version() -> None:
    """A run that goes on after an update must find its place again: the definition, in Python's own numbers."""
    start = int.from_bytes(hashlib.blake2b(b"conversations\x005\x003", digest_size=8).digest(), "little")

    def mixed(number: int) -> int:
        z = (start + number + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    assert permutation(500, "conversations", 5, 3).tolist() == sorted(range(500), key=mixed)


def test_an_order_is_random() -> None:
    """Every number comes as early as any other: ranks over many epochs have the mean and the spread of a fair draw."""
    places = np.array([np.argsort(permutation(50, "x", 0, epoch)) for epoch in range(2000)])
    deviation = np.sqrt((50**2 - 1) / 12 / 2000)
    assert (np.abs(places.mean(axis=0) - 24.5) < 5 * deviation).all()


@given(st.lists(st.integers(1, 40), max_size=300), st.integers(1, 64))
def test_every_item_is_in_one_pack_and_no_pack_is_too_full(lengths: list[int], chunk: int) -> None:
    items = np.array(lengths, np.int64)
    packs = pack(items, 40, chunk)
    assert sorted(packs.items.tolist()) == list(range(len(lengths)))
    sizes = [items[packs.items[a:b]].sum() for a, b in zip(packs.offsets[:-1], packs.offsets[1:], strict=True)]
    assert all(0 < size <= 40 for size in sizes)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_packs_are_those_of_best_fit_decreasing(lengths: list[int]) -> None:
    """Inside one chunk, against the rule itself: the longest first, each where it leaves the least room."""
    packs: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rooms = [40 - sum(lengths[i] for i in own) for own in packs]
        fitting = [(room, number) for number, room in enumerate(rooms) if room >= lengths[item]]
        if fitting:
            packs[min(fitting)[1]].append(item)
        else:
            packs.append([item])
    made = pack(np.array(lengths), 40)
    rooms_of = sorted(40 - sum(lengths[i] for i in own) for own in packs)
    found = [made.items[a:b] for a, b in zip(made.offsets[:-1], made.offsets[1:], strict=True)]
    assert sorted(40 - sum(lengths[i] for i in own) for own in found) == rooms_of


@pytest.mark.parametrize("size", [1024, 5120, 16384])
@pytest.mark.parametrize("spread", ["lognormal", "uniform", "exponential"])
def test_padding_is_below_one_percent_where_the_mean_is_a_quarter(size: int, spread: str) -> None:
    rng = np.random.default_rng(0)
    draws = {
        "lognormal": lambda: rng.lognormal(0, 0.6, 30_000) * size * 0.2,
        "uniform": lambda: rng.uniform(1, size / 2, 30_000),
        "exponential": lambda: rng.exponential(size / 4, 30_000),
    }
    lengths = np.clip(draws[spread](), 1, size).astype(np.int64)
    assert lengths.mean() <= size / 4 * 1.01
    packs = pack(lengths, size)
    assert 1 - lengths.sum() / (len(packs) * size) < 0.01


def test_padding_is_below_one_percent_where_a_chunk_fills_few_packs() -> None:
    """4,096 short conversations fill twelve packs and a half: the half is not left empty twenty times."""
    lengths = np.random.default_rng(0).integers(20, 80, CHUNK * 20)
    packs = pack(lengths, 16384)
    assert 1 - lengths.sum() / (len(packs) * 16384) < 0.01


def test_what_is_left_of_a_chunk_is_packed_with_the_next() -> None:
    packs = pack(np.array([6, 5, 6, 4, 5]), 10, chunk=2)
    assert len(packs) == 3
    assert sorted(packs.items.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("lengths", [[41], [0], [3, -1]])
def test_lengths_that_fit_nowhere_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="from 1 to 40"):
        pack(np.array(lengths), 40)


def test_packs_in_another_order() -> None:
    packs = Packs(np.array([4, 2, 0, 1, 3]), np.array([0, 2, 3, 5]))
    turned = packs.take(np.array([2, 0]))
    assert turned.items.tolist() == [1, 3, 4, 2]
    assert turned.offsets.tolist() == [0, 2, 4]
    assert len(packs.take(np.array([], np.int64))) == 0
