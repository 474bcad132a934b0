"""Where to convert: in this process, on Ray started here, or on a cluster. Decided without importing Ray."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pipeline.engines.spec import EngineSpec
from pipeline.errors import UserError

#: Below this many bytes of input, starting Ray takes longer than it saves.
_WORTH_RAY = 24 << 20
#: So many workers share a CPU at most: each takes its time to start and its memory, and speeds up nothing.
_WORKERS_PER_CPU = 4
#: Ray itself would try for two minutes to reach a cluster that is not there.
_ANSWERS_WITHIN = 5.0


def choose(given: str, workers: int | None, size: int, engine: EngineSpec | None = None) -> str:
    """``off``, ``local`` or the address of a cluster that answers. ``size``: bytes of input; ``engine``: what workers ask.

    ``given`` is the option: ``auto`` is a cluster that is running, else Ray here where it pays, else this process.
    Raises :class:`UserError` where the cluster that was asked for does not answer, or this machine has far fewer CPUs
    than ``workers`` need.
    """
    where = _where(given, workers, size, engine)
    most = _WORKERS_PER_CPU * (os.cpu_count() or 1)
    # Workers that ask a server wait most of the time.
    if where == "local" and engine is None and workers is not None and workers > most:
        raise UserError(
            f"--workers {workers}: each worker keeps a CPU busy, and this machine has {os.cpu_count() or 1}; the most "
            f"that Ray is started with here is {most}. Leave --workers out for one per CPU, or use a cluster"
        )
    return where


def _where(given: str, workers: int | None, size: int, engine: EngineSpec | None) -> str:
    if given in ("off", "local"):
        return given
    if given != "auto":
        _require(given, f"--ray {given}")
        return given
    named = os.environ.get("RAY_ADDRESS", "auto")
    if named not in ("auto", "local") and not named.startswith("http"):  # http: for `ray job submit` alone
        _require(named, f"RAY_ADDRESS={named}")
        return named
    here = _running_here()
    if here is not None:
        return here
    if engine is not None:  # one process keeps one engine, or any server, busy
        several = workers or (gpus_here() // engine.gpus if engine.gpus else 1)
        return "local" if several > 1 else "off"
    cpus = workers or os.cpu_count() or 1
    return "local" if cpus > 1 and (workers is not None or size >= _WORTH_RAY) else "off"


def gpus_here() -> int:
    """The GPUs of this machine that its driver shows."""
    driver = Path("/proc/driver/nvidia/gpus")
    return sum(1 for _ in driver.iterdir()) if driver.is_dir() else 0


def _running_here() -> str | None:
    """The cluster that ``ray start`` has made this machine a node of. A crashed one leaves its address behind."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    try:
        address = note.read_text().strip()
    except OSError:
        return None
    return address if _problem(address) is None else None


def _require(address: str, option: str) -> None:
    problem = _problem(address)
    if problem is not None:
        raise UserError(
            f"{option}: no Ray cluster answers there ({problem}). Check the address and the firewall, or use "
            f"--ray local to start Ray on this machine, or --ray off to convert in this process"
        )


def _problem(address: str) -> str | None:
    """Why nothing listens at ``[ray://]HOST:PORT``, or None where something does."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return "an address is HOST:PORT, such as 10.0.0.1:6379"
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_WITHIN).close()
    except (OSError, OverflowError, UnicodeError) as error:
        return (error.strerror if isinstance(error, OSError) else None) or str(error)
    return None
