"""Models run on plain torch here: the kernels have tests of their own, and the interpreter takes its time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trainer.attention import op


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the fixture of the same name one folder up."""
    monkeypatch.setattr(op, "launch", None)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other are slow where others compute too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
