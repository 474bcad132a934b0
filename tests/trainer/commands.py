"""The trainer's command line, in this process. Attention runs on plain torch: the interpreter takes its time."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from running import ROOT, Ran

from trainer.attention import op
from trainer.cli import main

Train = Callable[..., Ran]


def trainer(*arguments: str | Path) -> Ran:
    """A command in this process: stdout and stderr together. A traceback is an exception here, and fails the test."""
    output = io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["trainer", *map(str, arguments)]),
        mock.patch.object(op, "launch", None),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ran(code, output.getvalue())


def start(*arguments: str | Path, processes: int = 1, path: Path | None = None) -> subprocess.Popen[str]:
    """A command in a process of its own, or by torchrun in several; each with one thread. ``path``: modules found first."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "trainer", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **({} if path is None else {"PYTHONPATH": str(path)})},
        start_new_session=True,
    )


def metrics(run: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    """The lines of a run's table."""
    with (run / name).open() as file:
        return list(csv.DictReader(file))
