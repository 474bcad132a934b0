"""Products in bfloat16: what layers add to is bfloat16 as well, as it is where parameters are sharded."""

from __future__ import annotations

import torch
from tiny import decoder, grids

from trainer.model.attention import decoder_layers
from trainer.model.streams import StreamModel


def test_under_autocast_layers_are_given_bfloat16() -> None:
    model = StreamModel(decoder(), 3)
    seen: list[torch.dtype] = []
    for layer in decoder_layers(model.backbone):
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    cells = grids(0)
    trained = torch.arange(0, len(cells.ids), 3)
    given = (*cells.tensors(), cells.index(None), trained, trained % 64, torch.ones(len(trained)))
    exact, _ = model(*given)
    assert set(seen) == {torch.float32}
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = model(*given)
    rounded.backward()
    assert set(seen) == {torch.bfloat16}
    assert torch.allclose(rounded, exact, rtol=1e-2)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
