"""Decoding row by row, with a cache of what was said, against one forward over whole conversations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import SILENCE, Sequence, decoder, dropped, grids

from pipeline.errors import UserError
from pipeline.store.dataset import Layout
from pipeline.store.manifest import TokenizerEntry
from trainer.decode import Decoder
from trainer.model.description import Description
from trainer.model.streams import StreamModel

STREAMS = [
    {"name": "user", "kind": "input", "loss": 0.0, "silence_loss": 1.0, "end": False},
    {"name": "think", "kind": "internal", "loss": 1.0, "silence_loss": 1.0, "end": True},
    {"name": "output", "kind": "output", "loss": 1.0, "silence_loss": 1.0, "end": True},
]


def described(silence: str = "skip", visibility: dict[str, list[str]] | None = None) -> Description:
    layout = {"name": "test", "streams": STREAMS, "roles": {}} | ({"visibility": visibility} if visibility else {})
    tokenizer = TokenizerEntry("test", "", "", 64, SILENCE, None, {})
    return Description(Layout.from_dict(layout), tokenizer, silence, True, "")


def rows_of(cells: Sequence) -> list[dict[str, int]]:
    """What is said in every row of one conversation, behind the virtual row."""
    names = [stream["name"] for stream in STREAMS]
    said: list[dict[str, int]] = [{} for _ in range(int(cells.rows.max()))]
    for cell in np.flatnonzero(~cells.silent):
        said[cells.rows[cell] - 1][names[cells.streams[cell]]] = int(cells.ids[cell])
    return said


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("silence", ["skip", "keys"])
@pytest.mark.parametrize("visibility", [None, {"output": ["user"], "think": []}])
def test_row_by_row_gives_the_logits_of_training(
    kind: str, silence: str, visibility: dict[str, list[str]] | None
) -> None:
    description = described(silence, visibility)
    model = StreamModel(decoder(kind), 3).eval()
    torch.nn.init.normal_(model.vectors)
    for seed in range(2):
        cells = grids(seed, (14,))
        whole = model.hidden(*cells.tensors(), cells.index(description.visibility(), keys=silence == "keys"))
        kept = np.flatnonzero(dropped(cells, seed))
        if silence == "skip":  # and with the cells that training has
            some = model.hidden(*cells[kept].tensors(), cells[kept].index(description.visibility()))
            assert torch.allclose(some, whole[kept], atol=1e-4)
        run = Decoder(model, description)
        assert run.predicted == ["think", "output"]
        logits = [run.logits, *(run.step(said) for said in rows_of(cells))]
        for row, got in enumerate(logits):
            own = np.flatnonzero((cells.rows == row) & (cells.streams > 0))
            assert torch.allclose(got, model.logits(whole[own]), atol=1e-4), row
        said = int((~cells.silent).sum())
        assert run.cached == (said if silence == "skip" else len(cells.ids))


def test_run_feeds_back_what_the_model_says() -> None:
    model = StreamModel(decoder(), 3).eval()
    inputs = [{"user": 5}, {}, {"user": 6}]
    run = Decoder(model, described())
    said = list(run.run(iter(inputs), rows=6))
    again = Decoder(model, described())
    for row in range(6):
        tokens = again.logits.argmax(-1).tolist()
        assert said[row] == {n: t for n, t in zip(("think", "output"), tokens, strict=True) if t != SILENCE}
        again.step({**(inputs[row] if row < 3 else {}), **said[row]})


def test_what_the_model_does_not_have_is_refused_before_anything_is_remembered() -> None:
    run = Decoder(StreamModel(decoder(), 3).eval(), described())
    with pytest.raises(UserError, match="no such stream: tool"):
        run.step({"tool": 1})
    for token in (64, -1):
        with pytest.raises(UserError, match=f"^user: no such token: {token}; the model has ids from 0 to 63$"):
            run.step({"output": 1, "user": token})
    assert run.cached == 0
    run.step({"user": 63})
    assert run.cached == 1


def test_what_the_model_says_itself_is_no_input() -> None:
    run = Decoder(StreamModel(decoder(), 3).eval(), described())
    rows = run.run([{"user": 5}, {"user": 6, "output": 2}], rows=3)
    with pytest.raises(UserError, match=r"^output: the model says this itself.* step\(\)"):
        list(rows)
    run.step({"output": 2})


@torch.no_grad()
def test_clocks_tick_by_themselves() -> None:
    description = described()
    clock = replace(Layout.from_dict({"name": "", "streams": [
        {"name": "clock", "kind": "input", "loss": 0.0, "silence_loss": 1.0, "end": False, "clock": {"every": 3, "tick": "x"}}
    ], "roles": {}}).streams[0])  # fmt: skip
    layout = replace(description.layout, streams=(clock, *description.layout.streams[1:]))
    tokenizer = replace(description.tokenizer, tick_ids={"clock": 9})
    model = StreamModel(decoder(), 3).eval()
    ticking = Decoder(model, replace(description, layout=layout, tokenizer=tokenizer))
    told = Decoder(model, description)
    for row in range(7):
        assert torch.equal(
            ticking.step({"think": row + 1}), told.step({"think": row + 1} | ({} if row % 3 else {"user": 9}))
        )
