"""One real engine for all tests that need one, and a word about what could not be tested.

vLLM computes in processes of its own, so the engine outlives single event loops badly: all tests share one loop.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_model import CONTEXT, make_tiny_model

from pipeline.engines.spec import EngineSpec, parse_spec
from pipeline.engines.vllm import VllmEngine

# A tiny model needs little: one process instead of two on a CPU, and as little memory as may be.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# Threads that wait for each other are slower than one where other work runs beside.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

_HAS_VLLM = importlib.util.find_spec("vllm") is not None
_NOT_TESTED = "engines: the vllm engine was NOT tested: vllm is not installed (make setup says why)"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not tested: a skipped test proves nothing."""
    if not _HAS_VLLM:
        terminalreporter.write_line(_NOT_TESTED, yellow=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny random model."""
    if not _HAS_VLLM:
        pytest.skip(_NOT_TESTED)
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", context=CONTEXT)


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """The event loop of the shared engine."""
    with asyncio.Runner() as running:
        yield running


@pytest.fixture(scope="session")
def vllm_spec(tiny_model: Path) -> EngineSpec:
    """What the options say about the shared engine."""
    spec = parse_spec("vllm", str(tiny_model), ["gpu_memory_utilization=0.3"])
    assert spec is not None
    return spec


@pytest.fixture(scope="session")
def vllm_engine(vllm_spec: EngineSpec, runner: asyncio.Runner) -> Iterator[VllmEngine]:
    """A real engine, started."""
    engine = VllmEngine(vllm_spec)
    runner.run(engine.start())
    yield engine
    runner.run(engine.close())


@pytest.fixture(scope="session")
def vllm_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real OpenAI-compatible server of vLLM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # In pieces, a prompt with a seed is more than vLLM 0.32 can take back on a CPU: it dies.
    options = [
        "--enforce-eager",
        "--no-enable-chunked-prefill",
        "--enable-prompt-tokens-details",
        "--gpu-memory-utilization=0.3",
    ]
    options += ["--served-model-name=tiny", "--host=127.0.0.1", f"--port={port}"]
    options += ['--structured-outputs-config={"backend": "xgrammar", "disable_any_whitespace": true}']
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={tiny_model}", *options]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=written, stderr=written, env=environment)
    try:
        until = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5):
            return True
    except OSError:
        return False
