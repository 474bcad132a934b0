"""The chunked loss against torch's cross-entropy on whole logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from trainer.model.loss import Head, chunked_cross_entropy

N, D, V = 37, 16, 50


def given(bias: bool, rows: bool) -> tuple[torch.Tensor, Head, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).requires_grad_()

    ids = torch.tensor([3, 49]) if rows else None
    head = Head(normal(V, D), normal(V) if bias else None, normal(2, D) if rows else None, ids)
    targets = torch.randint(V, (N,))
    targets[:4] = torch.tensor([3, 49, 3, 49])
    return normal(N, D), head, targets, 10 * torch.rand(N)


@pytest.mark.parametrize("chunk", [1, 10, 37, 1000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_loss_and_gradients(chunk: int, bias: bool, rows: bool) -> None:
    hidden, head, targets, weights = given(bias, rows)
    table = head.weight if head.rows is None else head.weight.index_copy(0, head.ids, head.rows)
    each = cross_entropy(linear(hidden, table, head.bias), targets, reduction="none")
    wants = [x for x in (hidden, head.weight, head.bias, head.rows) if x is not None]
    wanted = torch.autograd.grad(3 * (weights * each).sum(), wants)

    loss, own = chunked_cross_entropy(hidden, head, targets, weights, chunk)
    assert torch.allclose(own, each, atol=1e-5) and torch.allclose(loss, (weights * each).sum(), rtol=1e-5)
    assert not own.requires_grad
    for got, expected in zip(torch.autograd.grad(3 * loss, wants), wanted, strict=True):
        assert torch.allclose(got, expected, atol=1e-4)


def test_frozen_tables_get_no_gradient() -> None:
    hidden, head, targets, weights = given(bias=False, rows=True)
    frozen = head._replace(weight=head.weight.detach())
    loss, _ = chunked_cross_entropy(hidden, frozen, targets, weights, 10)
    loss.backward()
    assert head.weight.grad is None and head.rows.grad.abs().sum() > 0


def test_no_cell_no_loss() -> None:
    hidden, head, _, _ = given(bias=False, rows=False)
    loss, each = chunked_cross_entropy(hidden[:0], head, torch.empty(0, dtype=torch.long), torch.empty(0))
    loss.backward()
    assert loss == 0 and each.shape == (0,) and (head.weight.grad == 0).all()


def test_autocast_decides_the_type_of_the_products() -> None:
    hidden, head, targets, weights = given(bias=False, rows=False)
    exact, _ = chunked_cross_entropy(hidden, head, targets, weights)
    with torch.autocast("cpu", torch.bfloat16):
        loss, each = chunked_cross_entropy(hidden, head, targets, weights)
    assert each.dtype == torch.float32 and loss != exact and torch.allclose(loss, exact, rtol=2e-2)
    (gradient,) = torch.autograd.grad(loss, head.weight)
    assert gradient.dtype == torch.float32
