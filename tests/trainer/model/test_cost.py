"""The operations that MFU counts are those that torch counts."""

from __future__ import annotations

import pytest
import torch
from tiny import decoder, grids
from torch.utils.flop_counter import FlopCounterMode

from trainer import metrics
from trainer.config import ModelOptions
from trainer.metrics import Work, cost_of, peak_of
from trainer.model import lora
from trainer.model.streams import StreamModel


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_operations_outside_attention(tune: str) -> None:
    backbone = decoder(vocabulary=128)
    model = StreamModel(backbone, 3)
    if tune == "lora":
        lora.add(backbone, ModelOptions(path=""), seed=0)
    cells = grids(0)
    size = len(cells.ids)
    trained = torch.arange(0, size, 3)
    with FlopCounterMode(display=False) as counter:
        loss, _ = model(*cells.tensors(), cells.index(None), trained, trained % 64, torch.ones(len(trained)))
        loss.backward()
    cost = cost_of(model)
    counted = cost.operations(Work(2, size, len(trained), 0))
    assert counted == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert cost.pair == 12 * 32 * 2 * 2  # 4 forward, 8 backward; head dim, heads, layers


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
    ],
)
def test_peaks_are_found_by_whole_words(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.torch.cuda, "get_device_name", lambda _: name)
    assert peak_of(torch.device("cuda"), bf16=True) == peak
    assert peak_of(torch.device("cuda"), bf16=False) is None
