"""What the loader gives, what the model makes of it, and what the decoder does are one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import start
from tiny import decoder

import pipeline
from trainer.data import DataOptions, Loader
from trainer.decode import Decoder
from trainer.model.description import describe
from trainer.model.streams import StreamModel


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"silence": "keys"}, {"virtual_rows": False}, {"streams": ("output", "user"), "loss": {"user": 0.5}}],
    ids=["default", "keys", "no virtual rows", "other streams"],
)
def test_decoding_a_grid_gives_the_logits_of_the_packs(grids: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    dataset = pipeline.open_dataset(str(grids))
    own = DataOptions(cells=2048, packs_per_step=1, cache=str(tmp_path), silence_rate=0.3, **options)
    loader = Loader(dataset, own, with_index=True)
    described = describe(dataset, loader, own)
    model = StreamModel(decoder(vocabulary=8256), len(loader.streams)).eval()
    torch.nn.init.normal_(model.vectors)
    names = [stream.name for stream in loader.streams]
    compared = 0
    (batch,) = next(loader.epoch(0))
    hidden = model.hidden(
        *(torch.as_tensor(x, dtype=torch.long) for x in (batch.ids, batch.streams, batch.positions)), batch.attention
    )
    for doc, number in enumerate(batch.numbers[:1]):
        grid = dataset[int(number)]
        said: list[dict[str, int]] = [{} for _ in range(grid.num_rows)]
        for span in grid.spans:
            for row, token in enumerate(span.tokens.tolist(), span.start):
                if span.stream in names:
                    said[row][span.stream] = token
        run = Decoder(model, described)
        logits = [] if run.logits is None else [run.logits]
        logits += [run.step(row) for row in said]
        for cell in np.flatnonzero((batch.docs == doc) & (batch.kinds > 0)):
            got = logits[batch.positions[cell]][run.predicted.index(names[batch.streams[cell]])]
            assert torch.allclose(got, model.logits(hidden[cell]), atol=1e-4)
            compared += 1
    assert compared > 40


def test_the_trainer_needs_what_a_machine_that_only_trains_has(small: list[str], tmp_path: Path) -> None:
    """A whole step without everything that the converter, the plots and the adapters need."""
    missing = (
        "ray",
        "polars",
        "msgspec",
        "rich",
        "vllm",
        "peft",
        "matplotlib",
        "jsonschema_rs",
        "aiohttp",
    )
    folder = tmp_path / "missing"
    folder.mkdir()
    for name in missing:
        (folder / f"{name}.py").write_text(f"raise ImportError('there is no {name} here')\n")
    process = start(*small, "--out", tmp_path / "run", "--max-steps", "1", path=folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
