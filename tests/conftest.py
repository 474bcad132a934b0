"""Fixtures for all tests; strategies and helpers are in ``samples``."""

from __future__ import annotations

import pytest
import samples
from hypothesis import settings

from pipeline.grid.tokens import Tokenizer

# Time per example says more about the machine than about the code; a failure can be repeated anywhere.
settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")


@pytest.fixture(params=["builtin", "neox"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """The built-in tokenizer, and a real one where there is one."""
    made: Tokenizer = getattr(samples, request.param)()
    return made
