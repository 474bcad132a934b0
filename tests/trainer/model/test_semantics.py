"""What a cell sees through a whole decoder: the definition, computed densely by transformers' own attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cells import policy
from numpy.typing import NDArray
from tiny import Sequence, decoder, dropped, grids

from trainer.model.streams import StreamModel

POLICIES = [None, "earlier", "own", "one sees nobody"]


def visibility_of(name: str | None, streams: int = 3) -> NDArray[Any] | None:
    return None if name is None else policy(name, streams, np.random.default_rng(0))


def make(kind: str) -> StreamModel:
    """In float64; what a decoder does in float32 all the same (norms, rotation) bounds what can be asked."""
    model = StreamModel(decoder(kind), streams=3)
    torch.nn.init.normal_(model.vectors)  # large, so that a wrong stream would be seen
    return model.double().eval()


def densely(model: StreamModel, cells: Sequence, visibility: NDArray[Any] | None, keys: bool = False) -> torch.Tensor:
    """Hidden states of all cells by transformers' eager attention and a dense mask: no line of ours but the sum."""
    ids, streams, positions = cells.tensors()
    embedded = model.backbone.get_input_embeddings()(ids) + model.vectors[streams]
    mask = torch.zeros(1, 1, len(ids), len(ids), dtype=torch.float64)
    mask.masked_fill_(~cells.mask(visibility, keys), -math.inf)
    before = model.backbone.config._attn_implementation
    model.backbone.config._attn_implementation = "eager"
    try:
        return model.backbone.get_decoder()(
            inputs_embeds=embedded[None], position_ids=positions[None], attention_mask=mask, use_cache=False
        )[0][0]
    finally:
        model.backbone.config._attn_implementation = before


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("name", POLICIES)
def test_skip_is_the_dense_computation_with_silent_keys_masked(kind: str, name: str | None) -> None:
    model, visibility = make(kind), visibility_of(name)
    for seed in range(3):
        cells = grids(seed)
        kept = np.flatnonzero(dropped(cells, seed))
        assert len(kept) < len(cells.ids)
        got = model.hidden(*cells[kept].tensors(), cells[kept].index(visibility))
        assert torch.allclose(got, densely(model, cells, visibility)[kept], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_keys_is_the_dense_computation(kind: str) -> None:
    model, visibility = make(kind), visibility_of("earlier")
    cells = grids(4)
    got = model.hidden(*cells.tensors(), cells.index(visibility, keys=True))
    wanted = densely(model, cells, visibility, keys=True)
    assert torch.allclose(got, wanted, atol=1e-5)
    assert not torch.allclose(wanted, densely(model, cells, visibility), atol=1e-2)  # the modes differ


@torch.no_grad()
def test_packing_changes_nothing() -> None:
    model = make("qwen3")
    cells = grids(5, (7, 12, 3))
    together = model.hidden(*cells.tensors(), cells.index(None))
    for doc in range(3):
        own = np.flatnonzero(cells.docs == doc)
        alone = cells[own]
        assert torch.allclose(model.hidden(*alone.tensors(), alone.index(None)), together[own], atol=1e-5)


@pytest.mark.parametrize("name", POLICIES)
def test_the_loss_of_a_cell_gives_nothing_to_cells_it_cannot_see(name: str | None) -> None:
    """Every cell has a token of its own, so that the gradient of the table tells the cells apart."""
    visibility = visibility_of(name)
    cells = grids(6, (5, 4))
    size = len(cells.ids)
    model = StreamModel(decoder(vocabulary=size + 1, tie_word_embeddings=False), streams=3)
    own = Sequence(np.arange(size), cells.streams, cells.rows, cells.docs, cells.silent)
    table = model.backbone.get_input_embeddings().weight
    reach = own.mask(visibility)  # through one layer, and through two
    reach = reach | (reach.float() @ reach.float() > 0)
    for cell in (size // 3, size // 2, size - 2):
        trained = torch.tensor([cell])
        loss, _ = model(*own.tensors(), own.index(visibility), trained, torch.tensor([1]), torch.ones(1))
        (gradient,) = torch.autograd.grad(loss, table)
        touched = (gradient[:size] != 0).any(1)
        assert torch.equal(touched, reach[cell]), cell


@torch.no_grad()
def test_a_cell_in_the_same_or_a_later_row_changes_nothing_not_even_a_bit() -> None:
    model = make("llama").float()
    cells = grids(7, (8,))
    before = model.hidden(*cells.tensors(), cells.index(None))
    changed = np.where(cells.rows >= 4, (cells.ids + 7) % 64, cells.ids)
    after = model.hidden(torch.as_tensor(changed), *cells.tensors()[1:], cells.index(None))
    assert torch.equal(before[cells.rows < 4], after[cells.rows < 4])
    other = (cells.rows == 4) & (changed == cells.ids)
    assert torch.equal(before[other], after[other])
