"""The learning rate of every step, at the corners of its course."""

from __future__ import annotations

import math

import pytest

from trainer.config import OptimizerOptions
from trainer.optimizer import rate_share


def shares(last: int, **options: object) -> list[float]:
    """Of all steps."""
    made = OptimizerOptions(**options)  # type: ignore[arg-type]
    return [rate_share(step, last, made) for step in range(last)]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "cooldown"])
def test_warm_up_rises_from_above_nothing_to_below_all(schedule: str) -> None:
    rising = shares(20, schedule=schedule, warmup_steps=3)[:3]
    assert rising == [1 / 4, 2 / 4, 3 / 4]
    assert shares(2, schedule=schedule, warmup_steps=3) == [1 / 4, 2 / 4]  # over before it is warm
    assert shares(20, schedule=schedule, warmup_steps=19)[:19] == [(step + 1) / 20 for step in range(19)]


def test_constant() -> None:
    assert shares(6, schedule="constant", warmup_steps=2, final_share=0.0) == [1 / 3, 2 / 3, 1, 1, 1, 1]
    assert shares(3, schedule="constant", warmup_steps=0) == [1, 1, 1]


def test_cosine() -> None:
    """Half way at the middle step, and at ``final_share`` with the last."""
    course = shares(10, schedule="cosine", warmup_steps=2, final_share=0.2)
    assert course[2] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 8)) / 2)
    assert course[5] == pytest.approx(0.6)
    assert course[9] == pytest.approx(0.2)
    assert shares(10, schedule="cosine", warmup_steps=0, final_share=0.0)[9] == pytest.approx(0)
    assert shares(4, schedule="cosine", warmup_steps=3, final_share=0.3)[3] == pytest.approx(0.3)
    # Beyond the last step, as a run that is made longer would ask: it stays.
    options = OptimizerOptions(schedule="cosine", warmup_steps=2, final_share=0.2)
    assert rate_share(15, 10, options) == pytest.approx(0.2)


def test_cooldown() -> None:
    """Constant, then a straight line that ends with the last step."""
    course = shares(10, schedule="cooldown", warmup_steps=1, cooldown_steps=4, final_share=0.2)
    assert course == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert shares(3, schedule="cooldown", warmup_steps=0, cooldown_steps=1, final_share=0.0) == [1, 1, 0]
    longer = shares(4, schedule="cooldown", warmup_steps=0, cooldown_steps=8, final_share=0.0)
    assert longer == pytest.approx([3 / 8, 2 / 8, 1 / 8, 0])
    options = OptimizerOptions(schedule="cooldown", warmup_steps=0, cooldown_steps=4, final_share=0.2)
    assert rate_share(15, 10, options) == pytest.approx(0.2)
