"""A run's configuration: an option that would do nothing is refused with the remedy, and numbers are read as they are meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import UserError
from trainer.config import Config, read


def given(*assignments: str) -> Config:
    """As ``--set`` gives them."""
    values: dict[str, Any] = {"dataset": "grids", "model.path": "tiny"}
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        values[key] = yaml.safe_load(value)
    return read(None, values)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["run.validate_every=5"], r"run\.validate_every: 5: nothing is held out .* give data\.validation_share"),
        (["optimizer.schedule=cooldown"], r"optimizer\.cooldown_steps: 0: .* give optimizer\.cooldown_steps"),
        (
            ["optimizer.schedule=cooldown", "optimizer.cooldown_steps=11", "run.max_steps=10"],
            r"optimizer\.cooldown_steps: 11: more than the run's 10 steps: give fewer, or set run\.max_steps higher",
        ),
        (
            ["optimizer.learning_rate="],
            r"optimizer\.learning_rate: None: must be a number; leave it out for its default",
        ),
        (["data.cells="], r"data\.cells: None: must be a whole number; leave it out for its default"),
        (["optimizer.schedule="], r"optimizer\.schedule: None: must be one of .*; leave it out for its default"),
        (["run.log="], r"run\.log: None: must be a list of names; leave it out for its default"),
        (["seed=-1"], r"seed: -1: must be from 0 to"),
        (["data.seed=-1"], r"data\.seed: -1: must be a whole number from 0"),
        (["data.cells=0"], r"data\.cells: 0: must be a whole number from 1"),
    ],
)
def test_what_would_do_nothing_is_refused(assignments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        given(*assignments)


def test_what_does_something_is_taken() -> None:
    assert given("run.validate_every=5", "data.validation_share=0.1").run.validate_every == 5
    made = given("optimizer.schedule=cooldown", "optimizer.cooldown_steps=10", "run.max_steps=10")
    assert made.optimizer.cooldown_steps == made.run.max_steps == 10
    assert given("optimizer.schedule=cooldown", "optimizer.cooldown_steps=10").run.max_steps is None


def test_a_cooldown_longer_than_an_epoch_is_found_when_its_steps_are_known() -> None:
    settings = given("optimizer.schedule=cooldown", "optimizer.cooldown_steps=10")
    with pytest.raises(UserError, match="more than the run's 9 steps"):
        replace(settings, run=replace(settings.run, max_steps=9))


@pytest.mark.parametrize("written", ["1000", "1e3", "1.0e+3", "1000.0", "'1000'"])
def test_a_whole_number_may_be_written_as_any(written: str) -> None:
    cells = given(f"data.cells={written}").data.cells
    assert cells == 1000 and type(cells) is int
    assert given("run.max_steps=1e3").run.max_steps == 1000


@pytest.mark.parametrize("written", ["1.5", "1e-3", "true", ".inf", ".nan", "nan", "many", "[1]", "1e999"])
def test_what_is_no_whole_number_is_refused(written: str) -> None:
    with pytest.raises(UserError, match=r"^data\.cells: .*: must be a whole number$"):
        given(f"data.cells={written}")


def test_a_frozen_configuration_is_read_as_it_was(tmp_path: Path) -> None:
    made = given("data.cells=1e3", "optimizer.schedule=cooldown", "optimizer.cooldown_steps=2", "run.max_steps=1e1")
    (tmp_path / "config.yaml").write_text(made.to_yaml())
    assert read(tmp_path / "config.yaml", {}) == made
