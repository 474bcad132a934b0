"""Whole runs: what they leave behind, and that it is true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import Train, metrics
from commands import trainer as command_line
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

import pipeline
import trainer
from trainer.config import ModelOptions
from trainer.data import DataOptions, Loader
from trainer.decode import Decoder
from trainer.model import description
from trainer.model.build import build
from trainer.model.vocabulary import tables


@pytest.fixture(scope="module")
def done(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "run"
    options = [
        "--max-steps",
        "6",
        "--save-every",
        "2",
        "--set=data.validation_share=0.2",
        "--set=run.log=[tensorboard]",
    ]
    ran = command_line(*small, "--out", out, *options)
    assert ran.code == 0, ran.output
    return out


def test_what_a_run_leaves(done: Path) -> None:
    frozen = yaml.safe_load((done / "config.yaml").read_text())
    assert frozen["optimizer"]["beta2"] == 0.95 and frozen["model"]["precision"] == "fp32"  # defaults, found out
    steps = metrics(done)
    assert [row["step"] for row in steps] == ["1", "2", "3", "4", "5", "6"]
    for name in ("loss", "loss/think", "loss/output", "speech", "start", "stop", "silence", "gradient_norm"):
        assert all(float(row[name]) > 0 for row in steps), name
    assert all(row["loss/user"] == "" and row["mfu"] == "" for row in steps)  # trains nothing; no peak known
    assert float(steps[-1]["loss"]) < float(steps[0]["loss"])
    assert sorted(p.name for p in (done / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    (held_out,) = metrics(done, "validation.csv")
    assert held_out["step"] == "6" and float(held_out["loss"]) > 0
    assert list((done / "tensorboard").iterdir())


def test_the_loss_is_one_weighted_mean_over_the_step(done: Path, grids: Path, model: Path) -> None:
    """Recomputed from the loader's packs with whole logits, torch's cross-entropy and the model before the first step."""
    frozen = yaml.safe_load((done / "config.yaml").read_text())
    loader = Loader(pipeline.open_dataset(str(grids)), DataOptions(**frozen["data"]), with_index=True)
    described = description.read(done)
    assert described is not None
    made = build(ModelOptions(path=str(model)), described).eval()
    sums = np.zeros(2)
    by_kind = np.zeros((5, 2))
    with torch.no_grad():
        for batch in next(iter(loader)):
            inputs = [torch.as_tensor(x, dtype=torch.long) for x in (batch.ids, batch.streams, batch.positions)]
            logits = made.logits(made.hidden(*inputs, batch.attention))
            each = cross_entropy(logits, torch.as_tensor(batch.targets).long(), reduction="none").double().numpy()
            sums += (batch.weights * each).sum(), batch.weights.sum()
            for kind in range(1, 5):
                own = batch.kinds == kind
                by_kind[kind] += (batch.weights * each)[own].sum(), batch.weights[own].sum()
    first = metrics(done)[0]
    assert float(first["loss"]) == pytest.approx(sums[0] / sums[1], rel=1e-5)
    for kind, name in enumerate(("speech", "start", "stop", "silence"), 1):
        assert float(first[name]) == pytest.approx(by_kind[kind, 0] / by_kind[kind, 1], rel=1e-5), name


def test_the_exported_model(done: Path, grids: Path, command: Train, tmp_path: Path) -> None:
    loaded = trainer.load(done / "model")
    plain = AutoModelForCausalLM.from_pretrained(done / "model")
    assert plain.config._attn_implementation != "streams"
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.backbone.parameters(), plain.parameters(), strict=True))
    assert torch.isfinite(plain(input_ids=torch.arange(9)[None]).logits).all()
    text = "Does <|im_end|> stay text?"
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert AutoTokenizer.from_pretrained(done / "model").decode(loaded.tokenizer.encode("Yes.").ids) == "Yes."
    dataset = pipeline.open_dataset(str(grids))
    assert [s.name for s in loaded.layout.streams] == [s.name for s in dataset.layout.streams]
    assert loaded.description.tokenizer.silence_id == dataset.manifest.tokenizer.silence_id == 8192
    vectors = loaded.model.vectors
    assert vectors.shape == (3, 64)
    decoder = Decoder(loaded.model, loaded.description)
    assert decoder.step({"user": 5}).shape == (2, 8256)

    earlier = tmp_path / "earlier"
    assert command("export", done, "--out", earlier, "--step", "4").code == 0
    assert not torch.equal(trainer.load(earlier).model.vectors, vectors)
    ran = command("export", done, "--out", earlier, "--step", "3")
    assert ran.code == 2 and "no checkpoint of step 3; there are [4, 6]" in ran.output
    ran = command("export", done, "--out", earlier)
    assert ran.code == 2 and f"--out {earlier}: exists; give another directory" in ran.output


def test_going_on_from_an_exported_model_keeps_what_was_learnt(done: Path, run: Train, tmp_path: Path) -> None:
    run(tmp_path / "run", "--model", done / "model", "--max-steps", "1", "--set=optimizer.learning_rate=0",
        "--set=optimizer.stream_learning_rate=0", "--set=data.streams=[output,user,think]")  # fmt: skip
    before, after = trainer.load(done / "model").model, trainer.load(tmp_path / "run" / "model").model
    assert torch.equal(after.vectors, before.vectors[[2, 0, 1]])
    assert torch.equal(tables(after.backbone)[0], tables(before.backbone)[0])


def test_lora_trains_adapters_vectors_and_new_rows_and_exports_them_merged(
    run: Train, model: Path, tmp_path: Path
) -> None:
    options = [
        "--set=model.tune=lora",
        "--set=model.lora_rank=4",
        "--save-every",
        "2",
        "--set=data.validation_share=0.2",
    ]
    run(tmp_path / "whole", *options, "--max-steps", "4")
    run(tmp_path / "parts", *options, "--max-steps", "2")
    run(tmp_path / "parts", *options, "--max-steps", "4", "--resume", "auto")
    whole, parts = (trainer.load(tmp_path / name / "model").model for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))

    base = AutoModelForCausalLM.from_pretrained(model)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "model")
    for (name, a), (other, b) in zip(base.named_parameters(), merged.named_parameters(), strict=True):
        assert name == other
        if "embed" in name:
            changed = (a != b).any(1).nonzero()[:, 0].tolist()
            assert changed == [8192, 8193]
            mean = a[:8192].double().mean(0).float()
            assert not torch.allclose(b[8192], mean, atol=1e-5) and not torch.allclose(b[8193], mean, atol=1e-5)
        else:
            assert torch.equal(a, b) == (a.ndim == 1), name
    # Merged, the model is what was trained: its validation loss is that of the adapted model.
    (held_out,) = metrics(tmp_path / "whole", "validation.csv")
    run(tmp_path / "again", "--model", tmp_path / "whole" / "model", "--max-steps", "1", "--set=data.validation_share=0.2",
        "--set=optimizer.learning_rate=0", "--set=optimizer.stream_learning_rate=0")  # fmt: skip
    (again,) = metrics(tmp_path / "again", "validation.csv")
    assert float(again["loss"]) == pytest.approx(float(held_out["loss"]), rel=1e-5)


def test_bf16(run: Train, tmp_path: Path) -> None:
    for precision in ("bf16", "fp32"):
        run(tmp_path / precision, "--max-steps", "3", f"--set=model.precision={precision}")
    low, high = (metrics(tmp_path / precision) for precision in ("bf16", "fp32"))
    for a, b in zip(low, high, strict=True):
        assert a["loss"] != b["loss"] and float(a["loss"]) == pytest.approx(float(b["loss"]), rel=5e-3)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "bf16" / "model")
    assert plain.dtype == torch.bfloat16


def test_what_is_said_before_the_first_step(
    run: Train, command: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trainer")
    run(tmp_path / "run", "--max-steps", "1", "--set=data.cells=2100")
    assert " steps an epoch; 1 step\n" in caplog.text
    said = re.search(r"attention on the CPU is dense: .* and --set data.cells=(\d+) is enough", caplog.text)
    assert said is not None
    caplog.clear()
    run(tmp_path / "enough", "--max-steps", "1", f"--set=data.cells={said[1]}", "--set=data.too_long=error")
    assert "dense" not in caplog.text
    ran = command("--version")
    assert ran.code == 0 and ran.output.startswith("trainer, version ")


def test_plot(done: Path, command: Train, tmp_path: Path) -> None:
    out = tmp_path / "curves.png"
    ran = command("plot", done, "--out", out)
    assert ran.code == 0 and out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 10_000
    (tmp_path / "metrics.csv").write_text(",".join(json.loads('["step","loss"]')) + "\n")
    ran = command("plot", tmp_path)
    assert ran.code == 2 and "no step has been measured" in ran.output
