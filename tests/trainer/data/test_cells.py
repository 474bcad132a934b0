"""Which cells exist and what they train, against the definition, cell by cell."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from data.reference import Cell, Grid, Lane, cells, chosen, flat
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.batch import NO_TARGET, Kind
from trainer.data.cells import Cells, Rules, count_cells, make_cells

MODES = [("skip", True), ("skip", False), ("keys", True), ("keys", False)]


@st.composite
def lanes(draw: st.DrawFn) -> tuple[list[Lane], list[str]]:
    """Up to four streams with any weights, one of them perhaps a clock, and a choice of them in any order."""
    made = [
        Lane(name, draw(st.sampled_from([0.0, 0.5, 1.0])), draw(st.sampled_from([0.0, 0.25, 1.0])))
        for name in "abcd"[: draw(st.integers(1, 4))]
    ]
    if draw(st.booleans()):
        made.append(Lane("clock", draw(st.sampled_from([0.0, 1.0])), 1.0, (draw(st.integers(1, 4)), 77)))
    names = draw(st.permutations([lane.name for lane in made]))
    names = names[: draw(st.integers(1, len(names)))]
    by_name = {lane.name: lane for lane in made}
    if not any(by_name[name].loss for name in names):
        made = [Lane(lane.name, 1.0, lane.silence_loss, lane.clock) if lane.name == names[0] else lane for lane in made]
    return made, names


@st.composite
def grids(draw: st.DrawFn, streams: list[Lane]) -> list[Grid]:
    """Up to four conversations; tokens may be the id of silence."""
    made = []
    for number in range(draw(st.integers(1, 4))):
        spans: dict[int, list[tuple[int, list[int]]]] = {}
        for stream, lane in enumerate(streams):
            row = 0
            for _ in range(0 if lane.clock else draw(st.integers(0, 3))):
                row += draw(st.integers(0, 4))
                tokens = draw(st.lists(st.integers(0, 999), min_size=1, max_size=4))
                spans.setdefault(stream, []).append((row, tokens))
                row += len(tokens)
        ends = [start + len(tokens) for own in spans.values() for start, tokens in own]
        made.append(Grid(f"f:{number}", max(ends, default=0), spans, draw(st.booleans())))
    return made


def by_conversation(made: Cells) -> list[list[Cell]]:
    """The arrays as cells."""
    columns = [column.tolist() for column in made[:-1]]
    every = [
        Cell(position, stream, token, silent, None if target == NO_TARGET else target, weight, kind)
        for token, stream, position, silent, target, weight, kind in zip(*columns, strict=True)
    ]
    bounds = np.concatenate([[0], np.cumsum(made.lengths)]).tolist()
    assert bounds[-1] == len(every)
    return [every[low:high] for low, high in pairwise(bounds)]


def keyed(cell: Cell) -> tuple[int, int]:
    return cell.position, cell.stream


def without_silent(cell: Cell, mode: str) -> Cell:
    """In mode ``keys`` no cell is marked silent."""
    return cell if mode == "skip" else Cell(**{**vars(cell), "silent": False})


@settings(max_examples=100)
@given(st.data())
@pytest.mark.parametrize(("mode", "virtual_rows"), MODES)
def test_all_cells_at_rate_one(mode: str, virtual_rows: bool, data: st.DataObject) -> None:
    streams, names = data.draw(lanes())
    given_grids = data.draw(grids(streams))
    rules = Rules(chosen(streams, names), mode, virtual_rows, 1.0)
    made = make_cells(flat(given_grids), rules, seed=0, epoch=0)
    expected = [
        [without_silent(cell, mode) for cell in cells(grid, streams, names, mode, virtual_rows)] for grid in given_grids
    ]
    assert by_conversation(made) == expected
    assert count_cells(flat(given_grids), rules).tolist() == made.lengths.tolist() == [len(own) for own in expected]


@settings(max_examples=100)
@given(st.data(), st.sampled_from([0.1, 0.3, 0.5]), st.integers(0, 2**40), st.integers(0, 3))
@pytest.mark.parametrize(("mode", "virtual_rows"), MODES)
def test_a_share_of_silence(
    mode: str, virtual_rows: bool, data: st.DataObject, rate: float, seed: int, epoch: int
) -> None:
    """Everything but silence → silence is as before; of that, exactly max(1, round(ρ · n)) remain, and weigh n / kept."""
    streams, names = data.draw(lanes())
    given_grids = data.draw(grids(streams))
    rules = Rules(chosen(streams, names), mode, virtual_rows, rate)
    made = by_conversation(make_cells(flat(given_grids), rules, seed, epoch))
    assert count_cells(flat(given_grids), rules).tolist() == [len(own) for own in made]
    for grid, own in zip(given_grids, made, strict=True):
        full = cells(grid, streams, names, mode, virtual_rows)
        stays = defaultdict(dict)
        for cell in full:
            if cell.stay:
                stays[cell.stream][cell.position] = cell
        kept = defaultdict(list)
        for cell in own:
            if cell.stay:
                kept[cell.stream].append(cell)
        for stream, candidates in stays.items():
            n = len(candidates)
            assert len(kept[stream]) == max(1, round(rate * n))
            for cell in kept[stream]:
                before = candidates[cell.position]
                assert cell.weight == np.float32(np.float32(before.weight) * np.float32(n / len(kept[stream])))
                assert (cell.target, cell.token) == (before.target, before.token)
        assert set(kept) <= set(stays)
        rest = [cell for cell in full if not cell.stay]
        if mode == "keys":  # cells whose silence is not trained stay as keys
            idle = {keyed(cell) for cell in own if cell.kind == Kind.NONE} - {keyed(c) for c in rest}
            assert idle == {keyed(c) for c in full if c.stay} - {keyed(c) for own in kept.values() for c in own}
            assert [keyed(cell) for cell in own] == [keyed(cell) for cell in full]
            own = [cell for cell in own if keyed(cell) not in idle]
        assert [without_silent(c, mode) for c in rest] == [cell for cell in own if not cell.stay]
        assert [keyed(cell) for cell in own] == sorted(keyed(cell) for cell in own)


def test_the_sampled_silence_is_unbiased_exactly() -> None:
    """Any values of the cells: over the seeds, the weighted sum over the kept cells has the full sum as its mean.

    The places of a group depend on one number t below n, and each t is as likely. So over seeds that meet every t equally
    often the mean is the full sum, to rounding; over seeds as they come it is close.
    """
    lane = [Lane("a"), Lane("b", 0.0)]
    grid = Grid("f:0", 40, {0: [(5, [1, 2]), (21, [3])], 1: [(39, [4])]})
    full = cells(grid, lane, ["a", "b"], "skip", True)
    n = sum(cell.stay for cell in full)
    values = dict(zip(range(41), np.random.default_rng(0).normal(3, 10, 41), strict=True))
    rules = Rules(chosen(lane), "skip", True, 0.1)
    sums: dict[tuple[int, ...], float] = {}
    times: dict[tuple[int, ...], int] = defaultdict(int)
    for seed in range(2000):
        (own,) = by_conversation(make_cells(flat([grid]), rules, seed, epoch=0))
        stays = [cell for cell in own if cell.stay]
        places = tuple(cell.position for cell in stays)
        sums[places] = sum(cell.weight * values[cell.position] for cell in stays)
        times[places] += 1
    expected = sum(values[cell.position] for cell in full if cell.stay)
    # Every set of places is one or several values of t; every cell is in its share of them.
    mean = sum(sums[places] * times[places] for places in sums) / 2000
    spread = np.std([sums[places] for places in sums for _ in range(times[places])]) / np.sqrt(2000)
    assert abs(mean - expected) < 4 * spread
    kept = max(1, round(0.1 * n))
    share = np.zeros(41)
    for places in sums:
        share[list(places)] += times[places] / 2000
    for cell in full:
        if cell.stay:
            assert abs(share[cell.position] - kept / n) < 5 * np.sqrt(kept / n / 2000)


@pytest.mark.parametrize(("n", "rate"), [(1, 0.1), (4, 0.1), (7, 0.3), (10, 0.5), (13, 0.9), (25, 0.1)])
def test_every_silent_cell_is_kept_equally_often(n: int, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash gives t below n; over all t, every cell is kept k times: unbiased without any error."""
    from trainer.data import cells as module

    grid = Grid("f:0", n, {1: [(n - 1, [1])]}, cut_short=False)  # rows 0 … n + 1 of stream a are silent: n + 1 cells
    rules = Rules(chosen([Lane("a"), Lane("b", 0.0)]), "skip", True, rate)
    kept = max(1, round(rate * (n + 1)))
    share = np.zeros(n + 1, int)
    for t in range(n + 1):
        monkeypatch.setattr(module, "combine", lambda hashes, _, t=t: np.full_like(hashes, t))
        (own,) = by_conversation(make_cells(flat([grid]), rules, 0, 0))
        places = [cell.position for cell in own if cell.stay]
        assert len(set(places)) == kept
        share[places] += 1
    assert (share == kept).all()


def test_places_depend_on_seed_epoch_id_and_stream_and_on_nothing_else() -> None:
    lane = [Lane("a"), Lane("b"), Lane("c")]
    grid = Grid("f:0", 400, {2: [(399, [1])]})

    def places(seed: int, epoch: int, id_: str, names: list[str], stream: str, company: int = 0) -> list[int]:
        crowd = [Grid(f"g:{i}", 30, {2: [(3, [1])]}) for i in range(company)]
        whole = [*crowd, Grid(id_, grid.num_rows, grid.spans)]
        made = by_conversation(make_cells(flat(whole), Rules(chosen(lane, names), "skip", True, 0.01), seed, epoch))
        return [cell.position for cell in made[-1] if cell.stay and cell.stream == names.index(stream)]

    first = places(0, 0, "f:0", ["a", "b", "c"], "a")
    assert len(first) == 4
    assert places(0, 0, "f:0", ["a", "b", "c"], "a", company=3) == first
    assert places(0, 0, "f:0", ["c", "a"], "a") == first
    others = [
        places(1, 0, "f:0", ["a", "b", "c"], "a"),
        places(0, 1, "f:0", ["a", "b", "c"], "a"),
        places(0, 0, "f:1", ["a", "b", "c"], "a"),
        places(0, 0, "f:0", ["a", "b", "c"], "b"),
    ]
    assert all(other != first for other in others)
    assert len({tuple(other) for other in others}) == len(others)


def test_no_conversations_have_no_cells() -> None:
    for mode, virtual_rows in MODES:
        made = make_cells(flat([]), Rules(chosen([Lane("a")]), mode, virtual_rows, 0.1), 0, 0)
        assert all(column.size == 0 for column in made)
