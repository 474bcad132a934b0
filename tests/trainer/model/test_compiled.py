"""Compilation and activation checkpointing change the cost of a step, and nothing of its gradients."""

from __future__ import annotations

import torch
from tiny import decoder, dropped, grids

from trainer.model.attention import decoder_layers
from trainer.model.streams import StreamModel


def gradients(checkpointing: bool, compiled: bool) -> list[torch.Tensor]:
    torch._dynamo.reset()
    model = StreamModel(decoder(), 3)
    model.train()
    if checkpointing:
        model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if compiled:
        for layer in decoder_layers(model.backbone):
            layer.compile(dynamic=False, backend="aot_eager")
    cells = grids(0)
    cells = cells[dropped(cells, 0)]
    trained = torch.arange(len(cells.ids))[cells.streams > 0]
    loss, _ = model(*cells.tensors(), cells.index(None), trained, trained % 64, torch.ones(len(trained)))
    loss.backward()
    return [p.grad for p in model.parameters()]


def test_the_same_gradients() -> None:
    wanted = gradients(False, False)
    for checkpointing, compiled in [(True, False), (False, True), (True, True)]:
        for a, b in zip(gradients(checkpointing, compiled), wanted, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5), (checkpointing, compiled)
