"""Where a run converts is decided without Ray, and never on a cluster that is not there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import free_port

from jobs.where import choose
from pipeline.errors import UserError

_LITTLE, _MUCH = 1000, 1 << 30


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("os.cpu_count", lambda: 8)


@pytest.fixture
def listening() -> Iterator[str]:
    """The address of something that answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_ray_is_started_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("auto", None, _LITTLE) == "off"
    assert choose("auto", None, _MUCH) == "local"
    assert choose("auto", 2, _LITTLE) == "local"
    assert choose("auto", 1, _MUCH) == "off"
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert choose("auto", None, _MUCH) == "off"


@pytest.mark.parametrize("given", ["local", "auto"])
def test_so_many_workers_as_help_nobody_are_refused(given: str, listening: str) -> None:
    """Each of them takes seconds to start. A cluster knows itself how many it has room for."""
    assert choose(given, 32, _LITTLE) == "local"
    with pytest.raises(UserError, match="--workers 33: each worker keeps a CPU busy, and this machine has 8"):
        choose(given, 33, _LITTLE)
    assert choose(listening, 33, _LITTLE) == listening


def test_what_is_asked_for_is_done(listening: str) -> None:
    for size in (_LITTLE, _MUCH):
        assert choose("off", None, size) == "off"
        assert choose("local", None, size) == "local"
        assert choose(listening, None, size) == listening


def test_a_job_runs_on_its_own_cluster(monkeypatch: pytest.MonkeyPatch, listening: str) -> None:
    """Ray sets the address for jobs; where it is wrong, that is said, and nothing else is tried."""
    monkeypatch.setenv("RAY_ADDRESS", listening)
    assert choose("auto", None, _LITTLE) == listening
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address}: no Ray cluster answers there"):
        choose("auto", None, _LITTLE)


def test_an_address_for_submitting_jobs_is_not_one_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert choose("auto", None, _LITTLE) == "off"


def test_a_cluster_on_this_machine_is_used_while_it_lives(tmp_path: Path, listening: str) -> None:
    """A cluster that has crashed leaves its address behind."""
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text(listening)
    assert choose("auto", None, _LITTLE) == listening
    note.write_text(f"127.0.0.1:{free_port()}")
    assert choose("auto", None, _LITTLE) == "off"
