"""Running the command line in tests, and comparing what it made."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import zstandard

from pipeline.cli import main

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "pipeline")


class Made(NamedTuple):
    """A corpus, how it is converted, and what comes of it undisturbed."""

    options: list[str]
    contents: dict[str, bytes]


class Ran(NamedTuple):
    """What a command did."""

    code: int
    output: str


def pipeline(*arguments: str | Path, columns: int = 200) -> Ran:
    """A command in this process: stdout and stderr together. A traceback is an exception here, and fails the test."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    code = 0
    with (
        mock.patch.object(sys, "argv", ["pipeline", *map(str, arguments)]),
        mock.patch.dict(os.environ, COLUMNS=str(columns)),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    output.seek(0)
    return Ran(code, output.read())


def start(arguments: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A command in a process of its own, and its own session, as a terminal would give it."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **(environment or {})},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> Ran:
    """Wait for a command's end."""
    output, _ = process.communicate(timeout=timeout)
    return Ran(process.returncode, output)


def spawned(*arguments: str | Path) -> Ran:
    """A command in a process of its own, to its end."""
    return finish(start(arguments))


def contents(dataset: Path) -> dict[str, bytes]:
    """All files of a dataset by name, except ``run.json``, which may differ between runs."""
    return {
        path.relative_to(dataset).as_posix(): path.read_bytes()
        for path in sorted(dataset.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def assert_same(dataset: Path, undisturbed: Mapping[str, bytes]) -> None:
    """That a dataset has exactly these files, with exactly these bytes."""
    found = contents(dataset)
    assert sorted(found) == sorted(undisturbed)
    assert [name for name in found if found[name] != undisturbed[name]] == []


def chat(number: int, words: int = 12) -> dict[str, object]:
    """A conversation that differs from all others."""
    question = f"Question {number}: what is {number} times {number + 1}?"
    answer = " ".join(f"Step {step} gives {number * step}." for step in range(1, words // 4 + number % 5 + 2))
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "reasoning_content": f"I multiply {number}. É 数 🙂", "content": answer},
        ]
    }


def write_lines(path: Path, count: int, words: int = 12, bad: int = 0) -> Path:
    """A ``.jsonl`` file of ``count`` conversations, of which every ``bad``-th is not one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            if bad and number % bad == bad - 1:
                stream.write('{"messages": [{"role": "user", "content"\n')
            else:
                stream.write(json.dumps(chat(number, words), ensure_ascii=False) + "\n")
    return path


def write_corpus(folder: Path, count: int, words: int = 12) -> Path:
    """A folder with the same number of conversations in each of the ways that a shard can get its records."""
    lines = write_lines(folder / "lines.jsonl", count, words, bad=17)  # read by range, some bad
    (folder / "packed.jsonl.zst").write_bytes(zstandard.compress(lines.read_bytes()))  # sent with the shard
    array = [chat(number, words) for number in range(count)]
    (folder / "array.json").write_text(json.dumps(array, ensure_ascii=False), encoding="utf-8")
    return folder


@contextlib.contextmanager
def start_cluster(cpus: int, dashboard_port: int | None) -> Iterator[str]:
    """Start a cluster with ``ray start``, and stop it after use. It is not the machine's default cluster."""
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # a short path: sockets go in there
        log = Path(folder, "start.log")
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--num-cpus={cpus}"]
        command += ["--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}", f"--temp-dir={folder}"]
        command += ["--disable-usage-stats", f"--include-dashboard={dashboard_port is not None}"]
        if dashboard_port is not None:
            command += [f"--dashboard-port={dashboard_port}", f"--dashboard-agent-listen-port={free_port()}"]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
                start_new_session=True,
            )
        try:
            until = time.monotonic() + 60
            while b"Ray runtime started" not in log.read_bytes():
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of ``size`` bytes, mounted at ``folder``. Skips the test where nobody may mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
