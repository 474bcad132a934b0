"""The kernels run in Triton's interpreter here, which must be asked for before they are first imported.

It is asked for during that import and during these tests alone: other tests' processes get the compiler.
"""

from __future__ import annotations

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    from trainer.attention import launch


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the interpreter these tests would compare the reference with itself."""
    assert launch.INTERPRETED
    monkeypatch.setenv("TRITON_INTERPRET", "1")
