"""The operation inside torch's machinery: compiled, checkpointed, both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cells import draw, policy, tensors
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.attention import Index, build_index, op, stream_attention


class Block(nn.Module):
    """Attention between linear layers, as in a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(32, 4 * 32)
        self.output = nn.Linear(2 * 32, 32)

    def forward(self, x: torch.Tensor, index: Index) -> torch.Tensor:
        q, k, v = self.projection(x).unflatten(-1, (4, 32)).transpose(1, 2).split([2, 1, 1], 1)
        return x + self.output(stream_attention(q, k, v, index).transpose(1, 2).flatten(2))


class Model(nn.Module):
    """Two blocks."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor, index: Index) -> torch.Tensor:
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x, index)
            else:
                x = checkpoint(block, x, index, use_reentrant=self.reentrant)
        return x


def train(seed: int, reentrant: bool | None, compiled: bool) -> list[torch.Tensor]:
    """The loss, and the gradients of input and parameters."""
    cells = draw(seed)
    model = Model(reentrant)
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    x = torch.randn(1, cells.size, 32, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    loss = run(x, cells.index).square().mean()
    loss.backward()
    return [loss.detach(), x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("seed", [11, 17])
def test_compiled_and_checkpointed_give_the_same_gradients(seed: int) -> None:
    wanted = train(seed, None, compiled=False)
    for reentrant, compiled in [(False, False), (True, False), (None, True), (False, True)]:
        got = train(seed, reentrant, compiled)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), (reentrant, compiled)


def test_another_index_does_not_compile_again() -> None:
    """Lists and classes differ from sequence to sequence: the second may compile once more, the others must not."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    run = torch.compile(stream_attention, backend=counter, fullgraph=True)
    rng = np.random.default_rng(0)
    rows, streams = (x.reshape(-1) for x in np.indices((10, 6)))
    q, k, v, _ = tensors(0, rows.size, 1, 1, 32, torch.float32)
    for number, name in enumerate(["default", "earlier", "pairs", "one sees nobody", "own", "default"]):
        silent = rng.random(rows.size) < 0.15 * number
        index = build_index(rows, streams, rows * 0, silent, policy(name, 6, rng))
        assert torch.equal(run(q, k, v, index), stream_attention(q, k, v, index))
    assert counter.frame_count <= 2


def test_the_operation_keeps_the_rules_of_torch() -> None:
    cells = draw(11)
    q, k, v, _ = tensors(11, cells.size, 2, 1, 32, torch.float32)
    rows_first = q.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    for given in (q, rows_first):
        torch.library.opcheck(op._forward, (given, k, v, *op._tensors(cells.index), 0.2))


def test_gradients_of_the_written_out_backward() -> None:
    """Against finite differences, in float64."""
    cells = draw(9, most=12)
    q, k, v, _ = tensors(9, cells.size, 2, 1, 4, torch.float64)
    assert torch.autograd.gradcheck(lambda *given: stream_attention(*given, cells.index), (q, k, v))
