"""Mode ``keys`` without virtual rows is what the paper's released trainer makes of the same grids.

Its rule, from its description: the tokens of ``dataset.jsonl`` row by row; a cell attends to itself and to every cell of
an earlier row; the label of a cell is the cell one row on, the number of streams further; position id = row; one
conversation per sequence; the User stream is not supervised.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from data.conftest import convert
from numpy.typing import NDArray

from pipeline.look.export import export_rows_jsonl
from trainer.attention.reference import dense_mask
from trainer.data import NO_TARGET, DataOptions, Loader


def collate(line: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Ids, labels, positions and the additive mask of one line, the way the released code makes them."""
    sample = json.loads(line)
    by_stream = np.array(sample["token_ids"])  # [streams, rows]
    streams, rows = by_stream.shape
    assert rows == sample["num_rows"]
    ids = by_stream.T.reshape(-1)
    labels = np.full(len(ids), -100)
    labels[:-streams] = ids[streams:]
    labels[0::streams] = -100  # the User stream is the first
    positions = np.arange(len(ids)) // streams
    seen = (positions[:, None] > positions[None, :]) | np.eye(len(ids), dtype=bool)
    return ids, labels, positions, np.where(seen, 0, -np.inf).astype(np.float32)


def test_keys_is_the_papers_collator(tmp_path: Path) -> None:
    chats = [
        [
            ("user", f"What is {n} and {n + 1}?"),
            ("assistant", f"It is {2 * n + 1}, which is odd."),
            ("user", "Thanks." * (n % 3)),
            ("assistant", "Any time!"),
        ]
        for n in range(6)
    ]
    lines = [json.dumps({"messages": [{"role": r, "content": t} for r, t in chat if t]}) for chat in chats]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    settings = ["--recipe", "wait-k", "--set", "layout=cognition-10"]
    dataset = convert("--input", tmp_path / "a.jsonl", *settings, out=tmp_path / "grids")
    export_rows_jsonl(dataset, str(tmp_path / "rows"))
    samples = [collate(line) for line in (tmp_path / "rows" / "dataset.jsonl").read_text().splitlines()]
    sizes = [len(ids) for ids, *_ in samples]
    assert min(sizes) > max(sizes) / 2, "one conversation per sequence"

    given = DataOptions(
        cells=max(sizes), packs_per_step=1, silence="keys", virtual_rows=False, silence_rate=1.0, cache=str(tmp_path)
    )
    loader = Loader(dataset, given, with_index=True)
    assert loader.streams[0].name == "User" and len(loader.streams) == 10
    seen = set()
    for (batch,) in loader.epoch(0):
        assert batch.conversations == 1
        number = int(batch.numbers[0])
        seen.add(number)
        ids, labels, positions, additive = samples[number]
        size = len(ids)
        assert np.array_equal(batch.ids[:size], ids)
        assert np.array_equal(batch.targets[:size], labels) and (batch.targets[size:] == NO_TARGET).all()
        assert np.array_equal(batch.positions[:size], positions)
        assert np.array_equal(batch.streams[:size], np.arange(size) % 10)
        assert set(batch.weights[:size][labels != -100].tolist()) == {1.0}
        assert batch.attention is not None
        mask = dense_mask(batch.attention)
        assert torch.equal(mask[:size, :size], torch.from_numpy(additive) == 0)
        assert torch.equal(mask[size:], torch.eye(len(mask), dtype=torch.bool)[size:])
        assert not mask[:size, size:].any()
    assert seen == set(range(len(samples)))
