"""Compilation and activation checkpointing change the cost of a step, and nothing of its gradients."""

from __future__ import annotations

import pytest
import torch
from tiny import decoder, dropped, grids
from torch._dynamo.testing import CompileCounterWithBackend

from trainer.model import attention
from trainer.model.prepare import checkpoint_layers, compile_layers
from trainer.model.streams import StreamModel

SIZE = 30  # cells of every sequence: a loader's packs have one size


def gradients(model: StreamModel, seed: int) -> list[torch.Tensor]:
    cells = grids(seed, (14, 9))
    cells = cells[dropped(cells, seed).nonzero()[0][:SIZE]]
    assert len(cells.ids) == SIZE
    trained = torch.arange(SIZE)[cells.streams > 0]
    loss, _ = model(*cells.tensors(), cells.index(None), trained, trained % 64, torch.ones(len(trained)))
    loss.backward()
    made = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return made


def test_the_same_gradients_and_few_compilations(monkeypatch: pytest.MonkeyPatch) -> None:
    attended = []
    plain = attention.stream_attention
    monkeypatch.setattr(attention, "stream_attention", lambda *given: attended.append(1) or plain(*given))
    wanted = [gradients(StreamModel(decoder(), 3), seed) for seed in range(3)]
    assert len(attended) == 3 * 2  # two layers
    attended.clear()
    monkeypatch.setattr(attention, "stream_attention", plain)

    for checkpointing, compiled in [(True, False), (True, True)]:
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        model = StreamModel(decoder(), 3).train()
        if checkpointing:
            checkpoint_layers(model.backbone)
        if compiled:
            compile_layers(model.backbone, backend=counter)
        else:
            monkeypatch.setattr(attention, "stream_attention", lambda *given: attended.append(1) or plain(*given))
        for seed in range(3):
            for a, b in zip(gradients(model, seed), wanted[seed], strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-5), (checkpointing, compiled)
        if compiled:
            # Once, and once more when the number of keys turns out to change; layers share what is compiled.
            assert 1 <= counter.frame_count <= 2
        else:
            assert len(attended) == 3 * 2 * 2  # forward, and once more in the backward
            monkeypatch.setattr(attention, "stream_attention", plain)
