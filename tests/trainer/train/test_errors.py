"""What a user can do wrong, and what the trainer says: the option, what is wrong, what to do; never a traceback."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Train, metrics, start
from running import ROOT
from tiny import decoder
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig

from trainer.step import Stepper


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set=optimizer.learnin_rate=1"], "optimizer.learnin_rate: no such option; known are learning_rate"),
        (["--set=optimiser.clip=1"], "optimiser: no such option; known are dataset, data, model, optimizer, run, seed"),
        (["--set=optimizer.clip=much"], "optimizer.clip: 'much': must be a number"),
        (["--set=optimizer.clip=-1"], "optimizer.clip: -1.0: must be at least 0"),
        (
            ["--set=optimizer.schedule=linear"],
            "optimizer.schedule: 'linear': must be one of constant, cosine, cooldown",
        ),
        (["--set=data.cells=1.5"], "data.cells: 1.5: must be a whole number"),
        (["--set=model.compile=1"], "model.compile: 1: must be true or false"),
        (["--set=run.log=mlflow"], "run.log: mlflow: must be tensorboard or wandb"),
        (["--set=data.silence=loud"], "silence: 'loud': must be one of skip, keys"),
        (["--set=data.streams=[user,outputs]"], "outputs: no such stream; the dataset has user, think, output"),
        (["--set=data"], "--set data: must be KEY=VALUE"),
        (["--set=data=5"], "data must hold keys and values"),
        (["--set=data.cells=10000000000"], "cells: 10000000000: must be below 2147483648"),
        (["--set=data.cells=null"], "data.cells: None: must be a whole number"),
        (["--set=data.loss={think: much}"], "data.loss.think: 'much': must be a number"),
        (["--set=data.silence_loss={think: null}"], "data.silence_loss.think: None: must be a number"),
        (["--set=model.path.x=3"], "which holds no keys and values"),
        (["--set=run.log=[wandb"], "--set run.log=[wandb: '[wandb' is no valid YAML"),
        (["--set=seed=5000000000"], "seed: 5000000000: must be from 0 to 4294967295"),
        (["--set=optimizer.learning_rate=true"], "optimizer.learning_rate: True: must be a number"),
        (["--set=optimizer.clip=.inf"], "optimizer.clip: inf: must be a number"),
        (["--set=optimizer.epsilon=nan"], "optimizer.epsilon: 'nan': must be a number"),
        (["--max-steps", "0"], "run.max_steps: 0: must be at least 1"),
        (["--config", "none.yaml"], "--config none.yaml: No such file"),
        (["--model", "./nothing"], "--model ./nothing: no such directory"),
        (["--data", "nothing"], "nothing: no dataset"),
        (["--device", "tpux"], "--device tpux: no such device"),
        (["--device", "meta"], "--device meta: this torch cannot use it"),
        (["--set=data.cells=20", "--set=data.too_long=error"], "conversations do not fit into 20 positions"),
        (["--set=data.cells=2"], "no conversation fits"),
        (["--set=model.tune=lora", "--set=model.lora_targets=[nothing]"], "model.lora_targets: nothing: "),
    ],
)
def test_options(small: list[str], command: Train, tmp_path: Path, options: list[str], message: str) -> None:
    ran = command(*small, "--out", tmp_path / "run", "--max-steps", "1", *options)
    assert ran.code == 2 and message in ran.output, ran.output
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(small: list[str], command: Train, tmp_path: Path) -> None:
    ran = command(*small, "--out", tmp_path / "run", "--device", "cuda")
    assert ran.code == 2 and "torch finds no GPU" in ran.output


def test_a_file_is_named_with_its_key(small: list[str], command: Train, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data:\noptimizer: {learning_rate: 1e-4}\nrun: {save_evry: 3}\n")
    ran = command(*small, "--out", tmp_path / "run", "--config", file)
    assert ran.code == 2 and f"{file}: run.save_evry: no such option" in ran.output
    file.write_bytes(b"seed: \xff")
    ran = command(*small, "--out", tmp_path / "run", "--config", file)
    assert ran.code == 2 and "no valid YAML" in ran.output
    file.write_text("a: [")
    ran = command(*small, "--out", tmp_path / "run", "--config", file)
    assert ran.code == 2 and "no valid YAML" in ran.output
    for missing, words in (("--data", "no dataset: give --data"), ("--model", "no model: give --model")):
        place = small.index(missing)
        ran = command(*small[:place], *small[place + 2 :], "--out", tmp_path / "run")
        assert ran.code == 2 and words in ran.output


def test_models_that_do_not_fit(small: list[str], command: Train, grids: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    decoder(vocabulary=100).save_pretrained(tmp_path / "few")
    ran = command(*small, "--out", out, "--model", tmp_path / "few")
    assert ran.code == 2 and "has 8192 tokens and the model only 100" in ran.output

    document = json.loads((grids / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    decoder(vocabulary=8256).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(document))
    ran = command(*small, "--out", out, "--model", tmp_path / "other")
    assert ran.code == 2 and "2 of 8192 tokens have other ids" in ran.output

    shape = decoder(vocabulary=8256).config
    windowed = MistralConfig(
        vocab_size=8256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=shape.max_position_embeddings, sliding_window=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(windowed).save_pretrained(tmp_path / "windowed")
    ran = command(*small, "--out", out, "--model", tmp_path / "windowed")
    assert ran.code == 2 and "wants a sliding window" in ran.output

    few = GPT2Config(vocab_size=8256, n_embd=64, n_layer=1, n_head=2, n_positions=8, attn_pdrop=0.0)
    AutoModelForCausalLM.from_config(few).save_pretrained(tmp_path / "short")
    ran = command(*small, "--out", out, "--model", tmp_path / "short")
    assert ran.code == 2 and re.search("has no position .* and the longest conversation has .* rows", ran.output)

    (tmp_path / "empty").mkdir()
    ran = command(*small, "--out", out, "--model", tmp_path / "empty")
    assert ran.code == 2 and "not a decoder that transformers opens" in ran.output
    assert not out.exists()

    (out / "model").mkdir(parents=True)
    ran = command(*small, "--out", out)
    assert ran.code == 2 and "holds checkpoints or a model, but no config.yaml" in ran.output


def test_a_dataset_without_conversations(small: list[str], command: Train, grids: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    shutil.copytree(grids, empty)
    manifest = json.loads((empty / "dataset.json").read_text())
    manifest["shards"] = []
    manifest["counts"]["rows"] = 0
    (empty / "dataset.json").write_text(json.dumps(manifest))
    ran = command(*small, "--out", tmp_path / "run", "--data", empty)
    assert ran.code == 2 and "holds no conversations" in ran.output


def test_a_loss_that_is_not_finite(small: list[str], command: Train, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--max-steps", "30", "--save-every", "1", "--set=optimizer.learning_rate=1e30"]
    ran = command(*small, "--out", out, *options)
    assert ran.code == 2 and "not finite" in ran.output and "learning_rate lower" in ran.output, ran.output
    assert "Rows of the dataset in this step: [" in ran.output
    steps = [int(path.name.removeprefix("step-")) for path in (out / "checkpoints").iterdir()]
    assert max(steps) <= len(metrics(out)) < 30 and f"step {max(steps) + 1}: " in ran.output
    assert f"The checkpoint of step {max(steps)} stands" in ran.output
    assert "fp32" not in ran.output  # which it was


def test_parameters_that_are_not_finite_are_never_saved(small: list[str], tmp_path: Path) -> None:
    """In two processes, which meet it alike: it is said once."""
    out = tmp_path / "run"
    process = start(*small, "--out", out, "--max-steps", "1", "--set=optimizer.learning_rate=1e39", processes=2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    (line,) = [line for line in output.splitlines() if line.startswith("Error") and "finite" in line]
    assert line.startswith("Error: step 1: ") and "no longer finite" in line and "There is no checkpoint yet" in line
    assert not list((out / "checkpoints").glob("*")) and not (out / "model").exists()


@pytest.fixture
def little_room() -> Iterator[Callable[[int], None]]:
    """Files cannot grow beyond so many bytes: what a full disk does to those who write, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full(
    run: Train, small: list[str], command: Train, tmp_path: Path, little_room: Callable[[int], None]
) -> None:
    out, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    run(out, "--max-steps", "1")
    (checkpoints / ".step-00000002.writing").mkdir()  # as a kill leaves it
    (out / ".model.writing").mkdir()
    again = [*small, "--out", out, "--max-steps", "2", "--resume", "auto"]
    little_room(1 << 20)
    ran = command(*again)
    assert ran.code == 2 and f"{checkpoints / 'step-00000002'}: cannot be written: File too large" in ran.output
    assert "what was begun is deleted. The checkpoint of step 1 stands" in ran.output
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000001"]
    assert not (out / ".model.writing").exists()

    ran = command("export", out, "--out", tmp_path / "model")
    assert ran.code == 2 and f"{tmp_path / 'model'}: cannot be written: File too large" in ran.output
    little_room(4096)
    ran = command("plot", out, "--out", tmp_path / "curves.png")
    assert ran.code == 2 and f"{tmp_path / 'curves.png'}: File too large" in ran.output
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    little_room(1 << 30)
    assert command(*again).code == 0


def test_a_start_that_failed_does_not_occupy_its_directory(
    run: Train, small: list[str], command: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", None)
    ran = command(*small, "--out", out, "--set=run.log=wandb")
    assert ran.code == 2 and "wandb is not installed" in ran.output and not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", _gpu_is_full)
        assert command(*small, "--out", out, "--set=seed=3").code == 2
    assert (out / "config.yaml").exists()
    run(out, "--max-steps", "1")


def test_a_place_that_cannot_be_used_is_named_before_the_model_is_loaded(
    small: list[str], command: Train, grids: Path, tmp_path: Path
) -> None:
    none = ["--model", "./nothing"]
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        ran = command(*small, *none, "--out", out)
        assert ran.code == 2 and f"--out {out}: {tmp_path / 'file'} is a file" in ran.output
    for name, others in (("config.yaml", "config.yaml"), ("mine.parquet", "config.yaml, mine.parquet")):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).write_text("{}")
        ran = command(*small, *none, "--out", tmp_path / "other")
        assert ran.code == 2 and f"holds something else than a run ({others})" in ran.output
    (tmp_path / "logged").mkdir()
    (tmp_path / "logged" / "train.log").touch()  # where the run's own output goes
    ran = command(*small, *none, "--out", tmp_path / "logged")
    assert ran.code == 2 and "--model ./nothing" in ran.output
    ran = command("plot", grids)
    assert ran.code == 2 and f"{grids}: no run: there is no metrics.csv in it" in ran.output
    ran = command("plot", grids, "--out", "x.foo")
    assert ran.code == 2 and "--out x.foo: not a picture" in ran.output and ".png" in ran.output


def _gpu_is_full(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB.\nMore.")


@pytest.mark.parametrize(
    ("full", "words"),
    [
        (_gpu_is_full, ["(CUDA out of memory. Tried to allocate 8 GiB.)", "512 positions: set"]),
        (
            lambda *_: torch.empty(1 << 50),
            ["(can't allocate memory: you tried", "without a GPU, attention takes memory"],
        ),
        (lambda *_: np.empty(1 << 50), ["(Unable to allocate 8.00 PiB", "512 positions: set"]),
    ],
)
def test_memory_that_is_not_enough(
    small: list[str], command: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: object, words: list[str]
) -> None:
    monkeypatch.setattr(Stepper, "step", full)
    ran = command(*small, "--out", tmp_path / "run")
    assert ran.code == 2 and "model.checkpointing: true" in ran.output, ran.output
    assert all(word in ran.output for word in words), ran.output


def test_an_error_that_is_ours_keeps_its_traceback(
    small: list[str], command: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stepper, "step", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        command(*small, "--out", tmp_path / "run")


def test_help_and_wrong_options_do_not_wait_for_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from trainer.cli import cli;"
        "assert CliRunner().invoke(cli, ['train', '-h']).exit_code == 0;"
        f"ran = CliRunner().invoke(cli, ['train', '--out', {str(tmp_path / 'run')!r}, '--set=run.keep=0']);"
        "assert 'no dataset' in str(ran.exception), ran; print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.strip() == "False"
