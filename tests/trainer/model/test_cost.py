"""The operations that MFU counts are those that torch counts."""

from __future__ import annotations

import pytest
import torch
from tiny import decoder, grids
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

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


def test_experts_count_for_the_cells_that_they_see() -> None:
    shape = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 32}
    shape |= {"num_key_value_heads": 2, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 1}
    config = Qwen3MoeConfig(**shape, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    cost = cost_of(StreamModel(AutoModelForCausalLM.from_config(config), 2))
    attention, router, expert = 4 * 64 * 64, 4 * 64, 3 * 64 * 32
    assert cost.cell == 6 * (attention + router + expert)
