"""A run that was killed, interrupted or moved to another number of processes goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from subprocess import Popen

import pytest
import torch
from commands import Train, metrics, start
from safetensors.torch import load_file

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
