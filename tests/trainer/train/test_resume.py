"""A run that was killed, interrupted or moved to another number of processes goes on as if nothing had been."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import torch
from commands import Train, metrics, start
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import filesystem

from trainer.step import Stepper

EXACT = (
    "step",
    "loss",
    "loss/think",
    "loss/output",
    "speech",
    "start",
    "stop",
    "silence",
    "gradient_norm",
    "learning_rate",
)


def wait_for(condition: object, process: Popen[str]) -> None:
    """Until something holds, and no longer than the process lives."""
    end = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def lines(run: Path) -> int:
    path = run / "metrics.csv"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def saved(run: Path) -> list[int]:
    return sorted(int(p.parent.name.removeprefix("step-")) for p in (run / "checkpoints").glob("step-*/state.json"))


def assert_same(run: Path, other: Path) -> None:
    """The same figures in every step, and the same model, to the last bit."""
    for a, b in zip(metrics(run), metrics(other), strict=True):
        assert [a[name] for name in EXACT] == [b[name] for name in EXACT]
    for name in ("model.safetensors", "streams.safetensors"):
        mine, theirs = load_file(run / "model" / name), load_file(other / "model" / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name


def test_killed_and_interrupted_runs_equal_one_that_was_not(small: list[str], run: Train, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    endless = [*small, "--out", out, "--save-every", "3", "--max-steps", "100000", "--resume", "auto"]
    killed = start(*endless)
    wait_for(lambda: saved(out) and lines(out) > max(saved(out)), killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    left = out / "checkpoints" / ".step-00000099.writing"  # as a kill amid a checkpoint leaves it
    left.mkdir()

    interrupted = start(*endless)
    before = lines(out)
    wait_for(lambda: lines(out) > before, interrupted)
    os.kill(interrupted.pid, signal.SIGINT)
    output, _ = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130 and "--resume auto goes on" in output
    step = saved(out)[-1]
    assert f"Stopped after step {step}." in output and lines(out) == step
    assert not left.exists()

    last = str(step + 2)
    run(out, "--save-every", "3", "--max-steps", last, "--resume", "auto")
    run(tmp_path / "whole", "--max-steps", last)
    assert_same(out, tmp_path / "whole")


def test_a_run_has_its_directory_alone_and_stops_in_order_when_nobody_reads_what_it_says(
    small: list[str], command: Train, tmp_path: Path
) -> None:
    """The second as in `trainer train … 2>&1 | tee log`, where Ctrl-C ends the reader as well."""
    out = tmp_path / "run"
    process = start(*small, "--out", out, "--save-every", "100000", "--max-steps", "100000")
    wait_for(lambda: lines(out) > 0, process)
    for resume in ("auto", "never"):
        ran = command(*small, "--out", out, "--resume", resume)
        assert ran.code == 2 and f"--out {out}: another process is at work there" in ran.output
    assert process.stdout is not None
    process.stdout.close()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert saved(out) == [lines(out)]


def test_two_processes_and_one_learn_the_same_and_one_goes_on_for_two(
    small: list[str], run: Train, tmp_path: Path
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    # Five packs an epoch: in its third step a pack is padding alone, and one process has nothing to train.
    small = [*small, "--set=data.cells=1024"]
    process = start(*small, "--out", two, "--max-steps", "3", "--set=data.validation_share=0.2", processes=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    steps = [line["positions"] for line in metrics(two)]
    assert int(steps[2]) <= 1024 < int(steps[0])
    options = ["--set=data.cells=1024", "--set=data.validation_share=0.2"]
    run(one, "--max-steps", "3", *options)
    for path in (two, one):
        run(path, "--max-steps", "5", *options, "--resume", "auto")
    assert len(metrics(one)) == 5
    for table in ("metrics.csv", "validation.csv"):
        for a, b in zip(metrics(two, table), metrics(one, table), strict=True):
            for name in {"positions", "conversations", *EXACT} & a.keys():
                if a[name] or b[name]:
                    assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-5), (table, name)
    mine, theirs = (load_file(path / "model" / "model.safetensors") for path in (two, one))
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-5) for name in theirs)


def test_a_run_goes_on_only_as_it_was_started(run: Train, small: list[str], command: Train, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, "--max-steps", "1")
    again = [*small, "--out", out, "--max-steps", "2"]
    ran = command(*again)
    assert ran.code == 2 and "holds a run; --resume auto goes on" in ran.output
    ran = command(*again, "--resume", "auto", "--set=optimizer.beta1=0.5", "--set=data.seed=3")
    assert ran.code == 2 and "data.seed was 0 and is 3; optimizer.beta1 was 0.9 and is 0.5" in ran.output
    ran = command(*again, "--resume", "auto", "--save-every", "7")
    assert ran.code == 0, ran.output
    (out / "checkpoints" / "step-00000002" / "__0_0.distcp").write_bytes(b"")
    ran = command(*small, "--out", out, "--max-steps", "3", "--resume", "auto")
    assert ran.code == 2 and "cannot be read" in ran.output and "step-00000002" in ran.output
    assert "Traceback" not in ran.output
    ran = command("export", out, "--out", tmp_path / "model")
    assert ran.code == 2 and "cannot be read" in ran.output and "step-00000002" in ran.output


def test_checkpoints_that_are_gone_are_spoken_of(run: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "trainer")
    out = tmp_path / "run"
    run(out, "--max-steps", "2", "--save-every", "1")
    state = out / "checkpoints" / "step-00000002" / "state.json"
    state.unlink()
    run(out, "--max-steps", "2", "--resume", "auto")
    assert f"{state.parent}: passed over" in caplog.text and "going on after step 1" in caplog.text
    assert state.exists()
    shutil.rmtree(out / "checkpoints")
    caplog.clear()
    run(out, "--max-steps", "1", "--resume", "auto")
    assert f"no checkpoint in {out / 'checkpoints'}: beginning anew" in caplog.text and "passed over" not in caplog.text
    caplog.clear()
    run(tmp_path / "new", "--max-steps", "1", "--resume", "auto")
    assert "beginning anew" not in caplog.text


def test_a_second_signal_amid_a_checkpoint_stops_at_once(
    small: list[str], command: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out, write_item, written = tmp_path / "run", filesystem._write_item, 0

    def twice_told(*arguments: Any, **options: Any) -> Any:
        nonlocal written
        written += 1
        if (out / "checkpoints" / "step-00000001").exists():
            os.kill(os.getpid(), signal.SIGINT)
        return write_item(*arguments, **options)

    monkeypatch.setattr(filesystem, "_write_item", twice_told)
    ran = command(*small, "--out", out, "--max-steps", "3", "--save-every", "1")
    assert ran.code == 130 and "Stopped at once; the checkpoint of step 1 stands." in ran.output and written > 3
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000001"]
    assert "Stopping after this step; Ctrl-C again stops at once" in capfd.readouterr().err


def test_a_validation_that_is_due_is_made_up_for(
    run: Train, small: list[str], command: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a signal in a step that has one, and after an end between the last checkpoint and the last validation."""
    out = tmp_path / "run"
    options = ["--max-steps", "3", "--set=data.validation_share=0.2", "--set=run.validate_every=1"]
    run(tmp_path / "whole", *options)
    step, validate = Stepper.step, Stepper.validate
    validations = 0

    def told_in_the_first(self: Stepper, number: int, *rest: Any) -> Any:
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, *rest)

    def stopped_in_the_last(self: Stepper, *rest: Any) -> Any:
        nonlocal validations
        validations += 1
        if validations == 3:
            raise KeyboardInterrupt
        return validate(self, *rest)

    monkeypatch.setattr(Stepper, "step", told_in_the_first)
    monkeypatch.setattr(Stepper, "validate", stopped_in_the_last)
    ran = command(*small, "--out", out, *options)
    assert ran.code == 130 and "Stopped after step 1" in ran.output and validations == 0
    ran = command(*small, "--out", out, *options, "--resume", "auto")
    assert ran.code == 130 and saved(out)[-1] == 3
    assert [row["step"] for row in metrics(out, "validation.csv")] == ["1", "2"]
    assert not (out / "model").exists()
    for _ in range(2):  # the second time, nothing is left to do
        run(out, *options, "--resume", "auto")
        assert metrics(out, "validation.csv") == metrics(tmp_path / "whole", "validation.csv")
        assert validations == 4
    assert_same(out, tmp_path / "whole")


def test_a_run_is_the_same_in_every_working_directory(
    run: Train, model: Path, command: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    run(Path("run"), "--model", "model", "--max-steps", "1", "--set=data.cache=cache")
    frozen = (tmp_path / "run" / "config.yaml").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("export", "../run", "--out", "exported").code == 0
    run(Path("../run"), "--model", "../model", "--max-steps", "2", "--save-every", "7", "--resume", "auto")
    assert (tmp_path / "run" / "config.yaml").read_bytes() == frozen  # what may change, changes for this time only
    assert len(metrics(tmp_path / "run")) == 2 and (tmp_path / "cache").is_dir()


def test_adapters_go_on_only_upon_the_weights_they_were_trained_on(
    run: Train, small: list[str], model: Path, command: Train, tmp_path: Path
) -> None:
    base, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(model, base)
    options = ["--model", base, "--set=model.tune=lora", "--set=model.lora_rank=2"]
    run(out, *options, "--max-steps", "1")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-3
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    message = "step-00000001: its adapters were trained on other weights than those that are now in model.path"
    ran = command(*small, "--out", out, *options, "--max-steps", "2", "--resume", "auto")
    assert ran.code == 2 and message in ran.output, ran.output
    ran = command("export", out, "--out", tmp_path / "exported")
    assert ran.code == 2 and message in ran.output and not (tmp_path / "exported").exists()
    base.rename(tmp_path / "moved")
    ran = command("export", out, "--out", tmp_path / "exported")
    assert ran.code == 2 and f"run/config.yaml: --model {base}: no such directory" in ran.output
    (tmp_path / "moved").rename(base)
    shutil.copy(model / "model.safetensors", base)
    run(out, *options, "--max-steps", "2", "--resume", "auto")
