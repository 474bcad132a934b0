"""How fast the loader makes training positions, per core: order, packing, cells and attention index included.

Each round is one epoch that was not made before, from the decoded cache: its order is drawn, its conversations are packed,
the cells of every pack are made, and the index of every pack is built. Counted are positions that hold a cell, not
padding; per second of processor time of all threads of the process.

Beside it, in turn with it: the paper's way of collating, which fills a float32 mask of S×S for every sequence. It is given
the cells for nothing, ready in memory, and fills its mask in one pass with one comparison per pair, so it is faster here
than the released code (52,000 positions/s at S = 5,120 where that was measured).

With ``--data DIR`` a dataset that is there already is measured alone: that needs no more installed than training does.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from common import median, parser, progress, records, report

import pipeline
from pipeline.store.dataset import Dataset
from trainer.data import Batch, DataOptions, Loader
from trainer.data.options import Silence

ASKED = 10e6


def epoch(loader: Loader, number: int) -> int:
    """Make an epoch; returns its positions."""
    for _ in loader.epoch(number):
        pass
    return loader.packing(number).cells


def dense_masks(packs: list[Batch]) -> int:
    """Fill the masks that the paper's collator would; returns the positions."""
    for pack in packs:
        rows = torch.from_numpy(pack.rows)
        mask = torch.full((len(rows), len(rows)), float("-inf"))
        mask.masked_fill_(rows[:, None] > rows[None, :], 0.0)
        mask.fill_diagonal_(0.0)
    return sum(int((pack.docs >= 0).sum()) for pack in packs)


def rate(work: Callable[[], int]) -> float:
    """Positions per second of processor time."""
    started = time.process_time()
    positions = work()
    return positions / (time.process_time() - started)


def measure(loaders: dict[str, Loader], rounds: int) -> dict[str, Any]:
    """All loaders and the dense masks of as many cells, in turn; medians over the rounds."""
    some = next(iter(loaders.values()))
    packs = [pack for pack in next(some.epoch(0)) if pack.conversations]
    rates: dict[str, list[float]] = {name: [] for name in (*loaders, "dense_mask")}
    for name, loader in loaders.items():
        epoch(loader, 0)  # caches are warm
        progress(f"{name}: {loader.packing(0)}")
    for number in range(1, rounds + 1):
        for name, loader in loaders.items():
            rates[name].append(rate(lambda loader=loader, number=number: epoch(loader, number)))
        rates["dense_mask"].append(rate(lambda: dense_masks(packs[:1])))
    found: dict[str, Any] = {f"{name}_positions_per_s": round(median(values)) for name, values in rates.items()}
    found["padding"] = {name: round(loader.packing(rounds).padding, 4) for name, loader in loaders.items()}
    found["times_dense_mask"] = round(min(found[f"{n}_positions_per_s"] for n in loaders) / median(rates["dense_mask"]))
    return found


def made(given: argparse.Namespace, folder: str) -> list[str]:
    """The conversations as grids of two streams, and of ten."""
    from size_and_reading import convert, ten_stream_dataset

    convert(records(given.corpus, given.conversations), f"{folder}/two", given.tokenizer, ["layout=chat-2"], folder)
    ten_stream_dataset(pipeline.open_dataset(f"{folder}/two"), f"{folder}/ten")
    return [f"{folder}/two", f"{folder}/ten"]


def loaders(data: list[str], size: int) -> dict[str, Loader]:
    """What is measured of these datasets; of ten streams also with ten classes, in which each sees those before it."""

    def loader(dataset: Dataset, index: bool = True, silence: Silence = "skip") -> Loader:
        own = DataOptions(cells=size, packs_per_step=4, too_long="drop", silence=silence)
        return Loader(dataset, own, with_index=index)

    found = {}
    for place in data:
        dataset = pipeline.open_dataset(place)
        name = {2: "two_streams", 10: "ten_streams"}.get(len(dataset.layout.streams), Path(place).name)
        found |= {name: loader(dataset), f"{name}_without_index": loader(dataset, index=False)}
        found[f"{name}_keys"] = loader(dataset, silence="keys")
        if name == "ten_streams":
            names = list(dataset.layout.index())
            earlier = {reader: names[:number] for number, reader in enumerate(names)}
            dataset.layout = dataclasses.replace(dataset.layout, visibility=earlier)
            found["ten_streams_ten_classes"] = loader(dataset)
    return found


def main() -> None:
    """Make the datasets, measure, report."""
    options = parser(__doc__)
    options.add_argument("--conversations", type=int, default=5_000)
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--data", help="a dataset made by 'pipeline convert'; default: some are made")
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = [given.data] if given.data else made(given, folder)
        results = {f"S={size}": measure(loaders(data, size), given.rounds) for size in (5_120, 16_384)}
    table(results)
    software = {"torch": torch.__version__.split("+")[0], "numpy": np.__version__}
    document = {
        "corpus": given.data or (given.corpus.name if given.corpus else "examples"),
        "rounds": given.rounds,
        "software": software,
    }
    document["load"] = round(os.getloadavg()[0], 1)  # processes that wanted a processor lately; ours is one of them
    report("loader", document | {"asked_positions_per_s": round(ASKED)} | results, given.json)


def table(results: dict[str, Any]) -> None:
    """The results for people."""
    for size, found in results.items():
        progress(f"\n{size:32}positions/s per core")
        for name, value in found.items():
            if name.endswith("_positions_per_s"):
                label = name.removesuffix("_positions_per_s")
                mark = "" if label == "dense_mask" or value >= ASKED else "   below what is asked"
                progress(f"  {label:30}{value:>16,}{mark}")


if __name__ == "__main__":
    main()
