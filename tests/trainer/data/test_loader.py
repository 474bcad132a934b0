"""The loader end to end: what it hands out is what the definition says, once, in any number of ranks, from any step."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.conftest import convert
from data.reference import Cell, cells, mask, of_dataset
from running import write_lines

import pipeline
from pipeline.errors import UserError
from pipeline.store.dataset import Dataset
from trainer.attention.reference import dense_mask
from trainer.data import NO_TARGET, Batch, DataOptions, Kind, Loader
from trainer.data.prefetch import Prefetched

SIZE = 2048


def options(**given: Any) -> DataOptions:
    """Small packs; what does not fit is dropped."""
    return DataOptions(**{"cells": SIZE, "packs_per_step": 4, "too_long": "drop"} | given)


def docs_of(batch: Batch) -> Iterator[tuple[int, list[Cell]]]:
    """The conversations of a pack: number in the dataset, and cells."""
    columns = (batch.positions, batch.streams, batch.ids, batch.silent, batch.targets, batch.weights, batch.kinds)
    for doc in range(batch.conversations):
        own = [column[batch.docs == doc].tolist() for column in columns]
        yield (
            int(batch.numbers[doc]),
            [
                Cell(position, stream, token, silent, None if target == NO_TARGET else target, weight, kind)
                for position, stream, token, silent, target, weight, kind in zip(*own, strict=True)
            ],
        )


def bytes_of(batches: list[Batch]) -> list[bytes]:
    return [b"".join(np.asarray(column).tobytes() for column in batch[:-1]) for batch in batches]


@pytest.mark.parametrize(
    ("mode", "virtual_rows", "streams"),
    [
        ("skip", True, None),
        ("skip", False, None),
        ("keys", True, ("output", "user", "think")),
        ("skip", True, ("think", "tool.1", "output", "user")),
    ],
)
def test_an_epoch_is_every_conversation_cell_by_cell(
    mode: str, virtual_rows: bool, streams: tuple[str, ...] | None, agents: Dataset
) -> None:
    """So no target crosses conversations, and every chosen target is trained exactly once."""
    grids, lanes = of_dataset(agents)
    names = list(streams or agents.layout.index())
    silence = agents.manifest.tokenizer.silence_id
    loader = Loader(
        agents, options(silence=mode, virtual_rows=virtual_rows, streams=streams, silence_rate=1.0, cells=6000)
    )
    found = {}
    steps = list(loader.epoch(0))
    assert len(steps) == loader.steps(0)
    for batch in (batch for step in steps for batch in step):
        for number, own in docs_of(batch):
            assert number not in found
            found[number] = own
    expected = {}
    for number, grid in enumerate(grids):
        full = cells(grid, lanes, names, mode, virtual_rows, silence)
        if len(full) <= 6000:
            expected[number] = [Cell(**{**vars(c), "silent": c.silent and mode == "skip"}) for c in full]
    assert found == expected
    assert loader.dropped == len(grids) - len(expected) > 0
    assert {cell.kind for own in found.values() for cell in own} == set(Kind)


def test_a_pack_is_padded_sorted_and_typed(agents: Dataset) -> None:
    loader = Loader(agents, options())
    types = [np.int32] * 5 + [np.bool_, np.int32, np.float32, np.int8]
    for batch in (batch for step in loader.epoch(0) for batch in step):
        assert [(column.dtype.type, column.shape) for column in batch[:9]] == [(kind, (SIZE,)) for kind in types]
        used = int((batch.docs >= 0).sum())
        key = list(
            zip(batch.docs[:used].tolist(), batch.rows[:used].tolist(), batch.streams[:used].tolist(), strict=True)
        )
        assert key == sorted(set(key))
        assert (batch.docs[used:] == -1).all() and (batch.ids[used:] == loader.silence_id).all()
        assert (batch.targets[used:] == NO_TARGET).all() and not batch.silent[used:].any()
        assert not batch.positions[used:].any() and not batch.streams[used:].any()
        trained = batch.targets != NO_TARGET
        assert np.array_equal(trained, batch.weights > 0)
        assert np.array_equal(trained, batch.kinds != Kind.NONE)
        assert np.array_equal(np.unique(batch.docs[:used]), np.arange(batch.conversations))


def test_every_epoch_holds_everything_in_another_order(agents: Dataset) -> None:
    loader = Loader(agents, options())
    epochs = [[batch for step in loader.epoch(epoch) for batch in step] for epoch in (0, 1)]
    numbers = [[int(n) for batch in epoch for n in batch.numbers] for epoch in epochs]
    assert numbers[0] != numbers[1]
    assert sorted(numbers[0]) == sorted(numbers[1]) == sorted(set(numbers[0]))
    sizes = [
        {int(n): int((batch.docs == doc).sum()) for batch in epoch for doc, n in enumerate(batch.numbers)}
        for epoch in epochs
    ]
    assert sizes[0] == sizes[1], "lengths depend on the epoch"
    assert bytes_of(epochs[0]) == bytes_of([b for step in Loader(agents, options()).epoch(0) for b in step])
    others = [b for step in Loader(agents, options(seed=1)).epoch(0) for b in step]
    assert bytes_of(epochs[0]) != bytes_of(others)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_packs_of_every_step(world_size: int, agents: Dataset) -> None:
    alone = list(Loader(agents, options()).epoch(0))
    ranks = [list(Loader(agents, options(), rank=r, world_size=world_size).epoch(0)) for r in range(world_size)]
    assert {len(steps) for steps in ranks} == {len(alone)}
    for number, step in enumerate(alone):
        shares = [bytes_of(ranks[rank][number]) for rank in range(world_size)]
        assert [share[i] for i in range(4 // world_size) for share in shares] == bytes_of(step)


def test_an_epochs_last_step_is_filled_up_with_padding(agents: Dataset) -> None:
    loader = Loader(agents, options(packs_per_step=7))
    packing = loader.packing(0)
    assert packing.packs % 7
    steps = list(loader.epoch(0))
    counts = [sum(batch.conversations > 0 for batch in step) for step in steps]
    assert counts == [7] * (packing.steps - 1) + [packing.packs % 7]
    assert packing.conversations == sum(batch.conversations for step in steps for batch in step)
    assert packing.cells == sum(int((batch.docs >= 0).sum()) for step in steps for batch in step)
    assert packing.padding == pytest.approx(1 - packing.cells / (packing.packs * SIZE))
    last = steps[-1][-1]
    assert last.conversations == 0 and (last.docs == -1).all()


@pytest.mark.parametrize("done", [0, 1, 3, 5, 11])
@pytest.mark.parametrize("ranks", [(1, 1), (1, 2), (4, 2)])
def test_a_run_that_goes_on_gets_what_the_other_would_have_got(
    done: int, ranks: tuple[int, int], agents: Dataset
) -> None:
    """After any step, across epochs, with another number of processes. The state is plain JSON."""
    before, after = ranks

    def loaders(world_size: int) -> list[Loader]:
        return [Loader(agents, options(), rank=rank, world_size=world_size) for rank in range(world_size)]

    def run(own: list[Loader], steps: int) -> list[list[bytes]]:
        taken = [[bytes_of(step) for step in islice(loader, steps)] for loader in own]
        return [sorted(pack for rank in step for pack in rank) for step in zip(*taken, strict=True)]

    whole = run(loaders(1), done + 6)
    assert loaders(1)[0].steps(0) < 11
    first = loaders(before)
    assert run(first, done) == whole[:done]
    states = [json.loads(json.dumps(loader.state_dict())) for loader in first]
    assert all(state == states[0] for state in states)
    second = loaders(after)
    for loader in second:
        loader.load_state_dict(states[0])
    assert run(second, 6) == whole[done:]


def test_the_state_says_epoch_and_step(agents: Dataset) -> None:
    loader = Loader(agents, options())
    steps = loader.steps(0)
    places = [(loader.state_dict()["epoch"], loader.state_dict()["position"]) for _ in islice(loader, steps + 2)]
    assert places == [*[(0, i) for i in range(1, steps)], (1, 0), (1, 1), (1, 2)]
    list(loader.epoch(0))
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 2)


def test_going_on_with_something_else_is_refused(agents: Dataset, tmp_path: Path) -> None:
    state = Loader(agents, options()).state_dict()
    with pytest.raises(
        UserError, match=r"data\.loss is {'think': 0\.5}, was {}; data\.silence_rate is 0\.2, was 0\.1\."
    ):
        Loader(agents, options(silence_rate=0.2, loss={"think": 0.5})).load_state_dict(state)
    with pytest.raises(UserError, match=r"data\.seed is 3, was 0"):
        Loader(agents, options(seed=3)).load_state_dict(state)
    Loader(agents, options(cache=str(tmp_path / "elsewhere"))).load_state_dict(state)
    other = convert("--input", write_lines(tmp_path / "a.jsonl", 3), out=tmp_path / "grids")
    with pytest.raises(UserError, match=r"its manifest has changed .* start a new run"):
        Loader(other, options()).load_state_dict(state)


def test_streams_and_visibility(tmp_path: Path) -> None:
    (tmp_path / "layout.yaml").write_text(
        "name: three\nstreams:\n- {name: user, kind: input}\n- {name: think, kind: internal, loss: 0.5}\n"
        "- {name: output, kind: output}\n"
        "- {name: clock, kind: input, clock: {every: 3, tick: ' the'}}\n"
        "roles: {system: user, user: user, think: think, answer: output, call: drop, result: drop}\n"
        "visibility: {user: [output, clock], output: [user, clock], clock: []}\nrelay: allowed\n"
    )
    lines = write_lines(tmp_path / "a.jsonl", 8)
    dataset = convert("--input", lines, "--set", f"layout={tmp_path / 'layout.yaml'}", out=tmp_path / "grids")
    names = ["output", "clock", "think"]
    loader = Loader(
        dataset,
        options(cells=400, streams=tuple(names), loss={"output": 2.0}, silence_loss={"think": 0.25}, silence_rate=1.0),
        with_index=True,
    )
    assert [(s.name, s.kind, s.loss, s.silence_loss) for s in loader.streams] == [
        ("output", "output", 2.0, 1.0),
        ("clock", "input", 0.0, 1.0),
        ("think", "internal", 0.5, 0.25),
    ]
    sees = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 1]], np.bool_)
    assert loader.visibility is not None and np.array_equal(loader.visibility, sees)
    grids, lanes = of_dataset(dataset)
    weighed = [type(lane)(lane.name, *{"output": (2.0, 1.0), "think": (0.5, 0.25)}.get(lane.name, (0.0, 1.0)), lane.clock)
               for lane in lanes]  # fmt: skip
    packs = [batch for step in loader.epoch(0) for batch in step]
    assert any(batch.conversations > 1 for batch in packs)
    for batch in packs:
        for number, own in docs_of(batch):
            assert own == cells(grids[number], weighed, names, "skip", True, loader.silence_id)
        assert batch.attention is not None
        expected = mask(batch.positions, batch.docs, batch.silent, batch.streams, sees)
        assert torch.equal(dense_mask(batch.attention), torch.from_numpy(expected))


@pytest.mark.parametrize("mode", ["skip", "keys"])
def test_no_cell_sees_another_conversation_or_a_later_row(mode: str, agents: Dataset) -> None:
    """The index of a pack is the definition's mask, with more than one conversation in it."""
    loader = Loader(agents, options(cells=700, silence=mode, streams=("user", "output")), with_index=True)
    assert loader.visibility is None
    everyone = np.ones((2, 2), np.bool_)
    batch = max(next(loader.epoch(0)), key=lambda batch: batch.conversations)
    assert batch.conversations > 1
    assert batch.silent.any() == (mode == "skip")
    expected = mask(batch.positions, batch.docs, batch.silent, batch.streams, everyone)
    assert batch.attention is not None
    assert torch.equal(dense_mask(batch.attention), torch.from_numpy(expected))
    assert next(Loader(agents, options(cells=700)).epoch(0))[0].attention is None


def test_what_was_cut_short_has_no_closing_row(tmp_path: Path) -> None:
    turns = [{"role": r, "content": f"{r} {i} says a few words."} for i in range(4) for r in ("user", "assistant")]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    settings = ["--set", "rows.max=50", "--set", "rows.long=window"]
    dataset = convert("--input", tmp_path / "a.jsonl", *settings, out=tmp_path / "grids")
    grids, lanes = of_dataset(dataset)
    assert len(grids) > 1
    loader = Loader(dataset, options(cells=256, silence_rate=1.0))
    found = {n: own for step in loader.epoch(0) for batch in step for n, own in docs_of(batch)}
    for number, grid in enumerate(grids):
        cut = type(grid)(grid.id, grid.num_rows, grid.spans, cut_short=number < len(grids) - 1)
        assert found[number] == cells(cut, lanes, [lane.name for lane in lanes], "skip", True, loader.silence_id)


def test_validation_holds_out_the_same_conversations_and_trains_all_silence(tmp_path: Path) -> None:
    dataset = convert("--input", write_lines(tmp_path / "a.jsonl", 200), out=tmp_path / "grids")

    def numbers(loader: Loader) -> set[int]:
        return {int(n) for step in loader.epoch(0) for batch in step for n in batch.numbers}

    train, held_out = (Loader(dataset, options(validation_share=0.2), split=s) for s in ("train", "validation"))
    assert numbers(train) | numbers(held_out) == set(range(200))
    assert not numbers(train) & numbers(held_out)
    assert 20 <= len(numbers(held_out)) <= 60
    again = Loader(dataset, options(validation_share=0.2, seed=9), split="validation")
    assert numbers(again) == numbers(held_out)
    more = Loader(dataset, options(validation_share=0.5), split="validation")
    assert numbers(more) > numbers(held_out)
    grids, lanes = of_dataset(dataset)
    names = [lane.name for lane in lanes]
    for step in held_out.epoch(0):
        for batch in step:
            for number, own in docs_of(batch):
                assert own == cells(grids[number], lanes, names, "skip", True, held_out.silence_id)


def test_windows_and_copies_of_one_conversation_are_held_out_together(tmp_path: Path) -> None:
    turns = [{"role": r, "content": f"{r} {i} says a few words."} for i in range(6) for r in ("user", "assistant")]
    lines = [json.dumps({"messages": turns, "n": n}) for n in range(20) for _ in range(2)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    settings = ["--set", "rows.max=50", "--set", "rows.long=window"]
    dataset = convert("--input", tmp_path / "a.jsonl", *settings, out=tmp_path / "grids")
    assert len(dataset) > 40
    held_out = Loader(dataset, options(cells=256, validation_share=0.5), split="validation")
    found = {int(n) for step in held_out.epoch(0) for batch in step for n in batch.numbers}
    records = [grid.source["record"] // 2 for grid in dataset]
    count = Counter(records[number] for number in found)
    assert 0 < len(count) < 20
    assert all(count[record] == records.count(record) for record in count)


def test_the_padding_is_logged_and_small(agents: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for words in (8, 40, 150):  # 95 to 170, 250 to 320 and 850 to 900 cells
        write_lines(tmp_path / "corpus" / f"{words}.jsonl", 600, words)
    dataset = convert("--input", tmp_path / "corpus", out=tmp_path / "grids")
    caplog.set_level(logging.INFO, "trainer.data")
    packing = Loader(dataset, options()).packing(0)
    assert packing.cells / packing.conversations <= SIZE / 4
    assert packing.padding < 0.01
    assert f"1800 conversations in {packing.packs} packs of {SIZE}" in caplog.text
    assert f"{100 * packing.padding:.2f} % padding" in caplog.text
    caplog.clear()
    Loader(agents, options())
    assert "do not fit into 2048 positions and are left out; the longest needs" in caplog.text


def refused(dataset: Dataset, **given: Any) -> str:
    """What the loader says against it."""
    own = {name: given.pop(name) for name in ("rank", "world_size", "split") if name in given}
    with pytest.raises(UserError) as error:
        Loader(dataset, DataOptions(**{"cells": 20_000, "packs_per_step": 12} | given), **own)
    return str(error.value)


def test_what_cannot_be_is_refused_and_says_what_can(agents: Dataset) -> None:
    said = refused(agents, world_size=5)
    assert said.startswith(
        "data.packs_per_step: 12 packs cannot be shared by 5 processes; "
        "start 1, 2, 3, 4, 6 or 12 processes, or choose a multiple of 5"
    )
    said = refused(agents, cells=2048)
    assert "of 85 conversations do not fit into 2048 positions; the longest needs 8068" in said
    assert "Set data.cells to" in said and "--max-rows … --long window" in said and "--set data.too_long=drop" in said
    assert "no conversation fits into 1 positions; set data.cells higher" in refused(agents, cells=1, too_long="drop")
    assert "data.streams: userr, out: no such stream; the dataset has system, " in refused(
        agents, streams=("userr", "out")
    )
    assert "data.streams: user, user: every stream can be given once" in refused(agents, streams=("user", "user"))
    assert "data.streams: user, system: none of them has a loss weight" in refused(agents, streams=("user", "system"))
    assert "data.streams: none given" in refused(agents, streams=())
    assert "data.loss: outputt: no such stream" in refused(agents, loss={"outputt": 1.0})
    assert "data.silence_loss.think: -1" in refused(agents, silence_loss={"think": -1})
    assert "data.validation_share: 0.0: of 85 conversations none is left for validation" in refused(
        agents, split="validation"
    )
    for name, value in (
        ("cells", 0), ("packs_per_step", True), ("seed", -1), ("silence", "drop"), ("too_long", "cut"),
        ("silence_rate", 0.0), ("silence_rate", 1.5), ("validation_share", 1.0),
    ):  # fmt: skip
        assert refused(agents, **{name: value}).startswith(f"data.{name}: {value!r}: must be")


def test_validation_says_why_it_needs_more(tmp_path: Path) -> None:
    dataset = convert("--input", write_lines(tmp_path / "a.jsonl", 40), out=tmp_path / "grids")
    longest = max(int(n) for n in Loader(dataset, options())._lengths)
    Loader(dataset, options(cells=longest, too_long="error"))
    said = refused(dataset, cells=longest, validation_share=0.5, split="validation")
    assert "when every silent cell counts, as it does in validation" in said


def test_an_empty_dataset_is_refused(agents: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "grids"
    shutil.copytree(agents.place.path(), folder)
    document = json.loads((folder / "dataset.json").read_text())
    document["shards"] = []
    document["counts"] |= {"rows": 0, "tokens": 0}
    (folder / "dataset.json").write_text(json.dumps(document))
    assert "holds no conversations" in refused(pipeline.open_dataset(str(folder)))


def test_a_dataset_that_goes_is_named(agents: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "grids"
    shutil.copytree(agents.place.path(), folder)
    dataset = pipeline.open_dataset(str(folder))
    (folder / "dataset.json").unlink()
    assert "gone since the dataset was opened" in refused(dataset)


def test_what_is_made_ahead_is_bounded_and_ends_with_its_user() -> None:
    made = []

    def endless() -> Iterator[int]:
        for number in range(10**9):
            made.append(number)
            yield number

    ahead = Prefetched(endless(), 2)
    things = iter(ahead)
    assert [next(things) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.3)
    assert len(made) <= 3 + 2 + 1
    before = threading.active_count()
    ahead.close()
    assert threading.active_count() == before - 1


def test_an_error_in_the_thread_is_raised_where_the_things_are_used() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise UserError("the disk is gone")

    things = iter(Prefetched(failing(), 2))
    assert next(things) == 1
    with pytest.raises(UserError, match="the disk is gone"):
        next(things)


def test_leaving_a_loader_ends_its_thread(agents: Dataset) -> None:
    before = threading.active_count()
    steps = iter(Loader(agents, options()))
    next(steps)
    assert threading.active_count() == before + 1
    steps.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
