"""The trainer's command line, in this process. Attention runs on plain torch: the interpreter takes its time."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from running import Ran

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
