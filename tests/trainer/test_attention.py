"""The kernels against the definition, in Triton's interpreter: values, gradients, and what must be exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cells import Cells, dense, draw, mask, tensors
from torch.nn.functional import scaled_dot_product_attention

from trainer.attention import Index, build_index, launch, stream_attention

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


@pytest.mark.parametrize("seed", range(220))
def test_kernels_equal_the_definition(seed: int) -> None:
    cells = draw(seed)
    dtype = torch.float16 if seed % 4 == 3 else torch.float32
    given = tensors(seed, cells.size, *SHAPES[seed % len(SHAPES)], DIMS[seed % len(DIMS)], dtype, 1 + (seed % 7 == 0))
    assert launch.usable(given[0])
    scale = 0.31 if seed % 5 == 0 else None
    got = gradients(stream_attention, given, cells.index, scale)
    assert_close(got, gradients(dense, given, cells, scale), dtype)


@pytest.mark.parametrize("seed", [1, 5, 11, 17])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("seed", [2, 4, 6, 9])
def test_the_loss_of_others_gives_an_invisible_key_exactly_nothing(seed: int, dtype: torch.dtype) -> None:
    cells = draw(seed)
    rng = np.random.default_rng(seed)
    q, k, v, d_out = tensors(seed, cells.size, 2, 1, 32, dtype)
    for share in (0.02, 0.2, 0.6):
        in_loss = torch.from_numpy(rng.random(cells.size) < share)
        out = stream_attention(q, k * 4, v, cells.index)
        d_q, d_k, d_v = torch.autograd.grad(out, (q, k, v), d_out * in_loss[:, None])
        seen = mask(cells)[in_loss].any(0)
        assert not seen.all() or share > 0.02
        assert (d_q[:, :, ~in_loss] == 0).all()
        assert (d_k[:, :, ~seen] == 0).all() and (d_v[:, :, ~seen] == 0).all()


@pytest.mark.parametrize("seed", [0, 2, 4, 6, 9, 12])
def test_what_a_cell_does_not_see_changes_no_bit(seed: int) -> None:
    """In particular cells of the same row and of later rows."""
    cells = draw(seed)
    rng = np.random.default_rng(seed)
    q, k, v, _ = (x.detach() for x in tensors(seed, cells.size, 2, 1, 32, torch.float32))
    index = cells.index
    before = stream_attention(q, k, v, index)
    for i in rng.integers(0, cells.size, 4):
        changed = ~mask(cells)[i][None, None, :, None]
        again = stream_attention(*(torch.where(changed, x * 5 - 3, x) for x in (q, k, v)), index)
        assert torch.equal(again[:, :, i], before[:, :, i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_two_runs_give_the_same_bits(dtype: torch.dtype) -> None:
    cells = draw(8)
    given = tensors(8, cells.size, 4, 2, 64, dtype)
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
    cells = draw(5)
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
