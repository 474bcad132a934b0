"""The kernels against the definition, in Triton's interpreter: values, gradients, and what must be exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cells import POLICIES, Cells, dense, draw, mask, tensors, with_pairs
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from trainer.attention import Index, build_index, launch, stream_attention

CASES = range(270)
PAIRED = with_pairs(50, 100)
TALL = with_pairs(2000, 400, most=400)
SHAPES = [(1, 1), (2, 1), (2, 2), (4, 2), (3, 1)]  # query heads, key heads
DIMS = [32, 32, 32, 16, 20, 64, 40, 32, 128, 32, 7, 32, 256]
# Largest error against float64 as a share of the largest value; float16 rounds its results to 5e-4.
ALLOWED = {torch.float32: 4e-6, torch.float16: 4e-3}


def gradients(
    attend: Callable[..., torch.Tensor], given: tuple[torch.Tensor, ...], *how: object
) -> tuple[torch.Tensor, ...]:
    """Output, and gradients of q, k and v."""
    q, k, v, d_out = given
    out = attend(q, k, v, *how)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), d_out.to(out.dtype))


def assert_close(got: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...], dtype: torch.dtype) -> None:
    for name, a, b in zip(("out", "d_q", "d_k", "d_v"), got, wanted, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1)
        assert error < ALLOWED[dtype], f"{name}: {error:.1e}"


def shape(seed: int, size: int) -> tuple[int, int, int]:
    """Query heads, key heads and head dim of a case: small where there are many cells, as the interpreter takes its time."""
    if size > 120:
        return *SHAPES[seed % 2 if size <= 300 else 0], 32
    return *SHAPES[seed % len(SHAPES)], DIMS[seed % len(DIMS)]


@pytest.mark.parametrize("seed", CASES)
def test_kernels_equal_the_definition(seed: int) -> None:
    cells = draw(seed)
    dtype = torch.float16 if seed % 4 == 3 else torch.float32
    batch = 2 if seed % 7 == 0 and cells.size <= 120 else 1
    given = tensors(seed, cells.size, *shape(seed, cells.size), dtype, batch)
    assert launch.usable(given[0])
    scale = 0.31 if seed % 5 == 0 else None
    got = gradients(stream_attention, given, cells.index, scale)
    assert_close(got, gradients(dense, given, cells, scale), dtype)


def test_the_cases_are_of_every_kind() -> None:
    """At least 200 in which cells attend to others, and among those every property that could go wrong."""
    kinds: Counter[str] = Counter()
    policies: Counter[str] = Counter()
    for seed in CASES:
        cells = draw(seed)
        if not cells.pairs:
            kinds["none attends to another"] += 1
            continue
        policies[POLICIES[seed % len(POLICIES)]] += 1
        count = len(np.unique(cells.streams))
        real = cells.docs >= 0
        rows = [cells.rows[cells.docs == doc] for doc in np.unique(cells.docs[real])]
        heights = {np.ptp(own) + 1 for own in rows}
        query_heads, key_heads, _ = shape(seed, cells.size)
        kinds.update(
            name
            for name, holds in {
                "pairs": True,
                "one stream": count == 1,
                "over 24 streams": count > 24,
                "over 100 streams": count > 100,
                "packed": len(rows) > 1,
                "packed, of different lengths": len(heights) > 1,
                "one row among others": 1 in heights,
                "padding": not real.all(),
                "dropped cells": any(own.size < len(np.unique(own)) * count for own in rows),
                "silence": cells.silent is not None and cells.silent.any(),
                "a stream sees nobody": cells.visibility is not None
                and not cells.visibility[cells.streams[real]].any(1).all(),
                "several classes": len(cells.index.classes) > 2,
                "grouped queries": query_heads > key_heads,
                "odd": cells.size % 2 == 1,
            }.items()
            if holds
        )
    assert kinds.pop("pairs") >= 200
    assert kinds["none attends to another"] >= 20  # one row, nothing but silence, nobody sees anybody
    assert len(kinds) == 14 and min(kinds.values()) >= 15, kinds
    assert policies.keys() == set(POLICIES) - {"nobody"} and min(policies.values()) >= 15, policies


@pytest.mark.parametrize("seed", TALL[:4])
def test_tall_grids_cross_many_tiles(seed: int) -> None:
    """Long enough that stretches without a mask occur, on both sides, behind other conversations."""
    cells = draw(seed, most=400)
    given = tensors(seed, cells.size, 2, 1, 32, torch.float32)
    assert_close(gradients(stream_attention, given, cells.index), gradients(dense, given, cells), torch.float32)


@pytest.mark.parametrize("seed", range(40))
def test_reference_equals_the_definition(seed: int) -> None:
    """The path without kernels, written out as they are; in float64 they do not take."""
    cells = draw(seed)
    given = tensors(seed, cells.size, *SHAPES[seed % len(SHAPES)], 8, torch.float64)
    assert not launch.usable(given[0])
    got, wanted = gradients(stream_attention, given, cells.index), gradients(dense, given, cells)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(got, wanted, strict=True))


def test_reference_takes_bfloat16() -> None:
    cells = draw(4)
    given = tensors(4, cells.size, 2, 1, 32, torch.bfloat16)
    for a, b in zip(gradients(stream_attention, given, cells.index), gradients(dense, given, cells), strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - b).abs().max() < 0.02 * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("size", [1, 2, 31, 64, 77])
def test_one_stream_is_causal_attention(size: int) -> None:
    cells = Cells(np.arange(size), np.zeros(size, int), np.zeros(size, int))
    given = tensors(size, size, 2, 2, 32, torch.float32)

    def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)

    assert_close(gradients(stream_attention, given, cells.index), gradients(causal, given), torch.float32)


def readers(cells: Cells) -> NDArray[np.int64]:
    """The cells that see another."""
    return np.flatnonzero(mask(cells).sum(1).numpy() > 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("seed", PAIRED)
def test_the_loss_of_others_gives_an_invisible_key_exactly_nothing(seed: int, dtype: torch.dtype) -> None:
    cells = draw(seed)
    rng = np.random.default_rng(seed)
    sees = mask(cells)
    q, k, v, d_out = tensors(seed, cells.size, 2, 1, 32, dtype)
    others = 0
    for share in (0.02, 0.3):
        in_loss = torch.from_numpy(rng.random(cells.size) < share)
        in_loss[rng.choice(readers(cells))] = True
        out = stream_attention(q, k * 4, v, cells.index)
        d_q, d_k, d_v = torch.autograd.grad(out, (q, k, v), d_out * in_loss[:, None])
        seen = sees[in_loss].any(0)
        others += int((~seen).sum())
        assert (d_q[:, :, ~in_loss] == 0).all()
        assert (d_k[:, :, ~seen] == 0).all() and (d_v[:, :, ~seen] == 0).all()
        assert (d_v[:, :, seen] != 0).any(-1).sum() > in_loss.sum()  # more than the cells' own keys
    assert others > 0


@pytest.mark.parametrize("seed", PAIRED)
def test_what_a_cell_does_not_see_changes_no_bit(seed: int) -> None:
    """In particular cells of the same row and of later rows."""
    cells = draw(seed)
    rng = np.random.default_rng(seed)
    q, k, v, _ = (x.detach() for x in tensors(seed, cells.size, 2, 1, 32, torch.float32))
    index = cells.index
    before = stream_attention(q, k, v, index)
    for i in [*rng.choice(readers(cells), 3), rng.integers(cells.size)]:
        changed = ~mask(cells)[i][None, None, :, None]
        assert changed.any()
        again = stream_attention(*(torch.where(changed, x * 5 - 3, x) for x in (q, k, v)), index)
        assert torch.equal(again[:, :, i], before[:, :, i])
        assert not torch.equal(again, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_two_runs_give_the_same_bits(dtype: torch.dtype) -> None:
    cells = draw(17)
    given = tensors(17, cells.size, 4, 2, 64, dtype)
    first, second = (gradients(stream_attention, given, cells.index) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_classes_are_added_up_in_float32() -> None:
    """One key gets 4096 from itself and 0.5 from each of 33 cells in as many classes: float16 would lose every half."""
    streams = np.arange(-1, 33).clip(0)
    visibility = np.eye(33, dtype=bool)
    visibility[:, 0] = True
    index = build_index(np.arange(34).clip(0, 1), streams, streams * 0, visibility=visibility)
    q = torch.zeros(1, 1, 34, 32, dtype=torch.float16, requires_grad=True)
    d_out = torch.ones_like(q)
    d_out[:, :, 0] = 4096
    (d_v,) = torch.autograd.grad(stream_attention(q.detach(), q.detach(), q, index), q, d_out)
    assert (d_v[:, :, 0] == 4112).all()


def test_any_memory_layout() -> None:
    """Heads inside rows, as a model's projection leaves them; a slice of something larger; a gradient of one number."""
    cells = draw(17)
    size = cells.size
    fused = torch.randn(2, size, 4, 36, generator=torch.Generator().manual_seed(0))
    q, k, v = fused[..., :32].split([2, 1, 1], 2)
    layouts = [
        [x.transpose(1, 2) for x in (q, k, v)],
        [x.transpose(1, 2)[..., 1:] for x in (q, k, v)],
        [x.transpose(1, 2).expand(2, -1, -1, -1) for x in (q[:1], k[:1], v[:1])],
    ]
    for views in layouts:
        given = [x.detach().requires_grad_() for x in views]
        out = stream_attention(*given, cells.index)
        got = out.detach(), *torch.autograd.grad(out.sum(), given)
        expected = dense(*given, cells)
        assert_close(got, (expected, *torch.autograd.grad(expected.sum(), given)), torch.float32)


ROW = np.arange(4)
INDEX = build_index(ROW, ROW * 0, ROW * 0)


@pytest.mark.parametrize(
    ("q", "k", "v", "index", "scale", "message"),
    [
        ((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 4), INDEX, None, "takes q"),
        ((1, 2, 4, 8), (2, 2, 4, 8), (2, 2, 4, 8), INDEX, None, "takes q"),
        ((2, 4, 8), (2, 4, 8), (2, 4, 8), INDEX, None, "takes q"),
        ((1, 3, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8), INDEX, None, "no multiple"),
        ((1, 2, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8), INDEX, None, "index has 4 cells"),
        ((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8), INDEX, 0.0, "positive"),
        ((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8), INDEX.to("meta"), None, "one device"),
    ],
)
def test_refused(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], index: Index, scale: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        stream_attention(torch.zeros(q), torch.zeros(k), torch.zeros(v), index, scale)


def test_mixed_types_are_refused() -> None:
    x = torch.zeros(1, 1, 4, 8)
    with pytest.raises(ValueError, match="one type"):
        stream_attention(x, x.half(), x, INDEX)
