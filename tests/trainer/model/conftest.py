"""Models run on plain torch here: the kernels have tests of their own, and the interpreter takes its time."""

from __future__ import annotations

import pytest

from trainer.attention import op


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the fixture of the same name one folder up."""
    monkeypatch.setattr(op, "launch", None)
