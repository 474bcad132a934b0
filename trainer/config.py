"""What a user decides about a run: one YAML file, checked before any work, frozen in the run's directory.

    dataset: grids
    data: {cells: 8192, packs_per_step: 8}       # trainer.data.DataOptions
    model: {path: Qwen/Qwen3-0.6B}
    optimizer: {learning_rate: 1e-5}
    run: {save_every: 500}

Every key has a default but ``dataset`` and ``model.path``, which the command line gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from pipeline.errors import UserError
from trainer.data.options import DataOptions

_DATA_DEFAULTS = {"cells": 8192, "packs_per_step": 8}


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The pretrained model and how it is trained.

    ``path``           a directory or hub name of a Hugging Face decoder, or a model that this trainer exported.
    ``tune``           ``full``: all weights; ``lora``: adapters, stream vectors and the rows of silence and end.
    ``lora_rank``, ``lora_alpha``, ``lora_targets``  as in peft; the targets are names of linear layers, or ``all-linear``.
    ``precision``      ``bf16``: products in bfloat16, weights and their sums in float32; ``fp32``; ``auto``: bf16 on a GPU.
    ``checkpointing``  compute activations again in the backward: less memory, about a third more work.
    ``compile``        torch.compile every layer.
    """

    path: str
    tune: Literal["full", "lora"] = "full"
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_targets: tuple[str, ...] = ("all-linear",)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        _least("model.lora_rank", self.lora_rank, 1)


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """AdamW.

    ``learning_rate``         of everything but what is new; ``stream_learning_rate``: of stream vectors.
    ``warmup_steps``          steps in which the rates rise from 0.
    ``schedule``              after that: ``constant``; ``cosine`` down to ``final_share`` of the rate at the last step;
                              ``cooldown``: constant, and linear down to ``final_share`` in the last ``cooldown_steps``
                              (which must be given).
    ``weight_decay``          of matrices; not of vectors, biases and norms.
    ``clip``                  largest norm of the gradient; 0: no limit.
    """

    learning_rate: float = 1e-5
    stream_learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup_steps: int = 20
    schedule: Literal["constant", "cosine", "cooldown"] = "cosine"
    cooldown_steps: int = 0
    final_share: float = 0.1

    def __post_init__(self) -> None:
        for name in ("learning_rate", "stream_learning_rate", "weight_decay", "clip", "warmup_steps", "cooldown_steps"):
            _least(f"optimizer.{name}", getattr(self, name), 0)
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and 0 <= self.final_share <= 1 and self.epsilon > 0):
            raise UserError("optimizer: beta1 and beta2 must be in [0, 1), final_share in [0, 1], epsilon above 0")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The course of a run.

    ``max_steps``       optimiser steps; null: one epoch.
    ``save_every``      steps between checkpoints; the last step is always saved. ``keep``: how many are kept.
    ``validate_every``  steps between validations (needs data.validation_share); 0: after the last step alone.
    ``log``             also write to ``tensorboard`` or ``wandb``.
    """

    max_steps: int | None = None
    save_every: int = 500
    keep: int = 2
    validate_every: int = 0
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_steps is not None:
            _least("run.max_steps", self.max_steps, 1)
        _least("run.save_every", self.save_every, 1)
        _least("run.keep", self.keep, 1)
        _least("run.validate_every", self.validate_every, 0)
        if unknown := set(self.log) - {"tensorboard", "wandb"}:
            raise UserError(f"run.log: {', '.join(sorted(unknown))}: must be tensorboard or wandb")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. ``seed`` decides stream vectors and adapters at the start, and dropout; order is ``data.seed``."""

    dataset: str
    data: DataOptions
    model: ModelOptions
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    run: RunOptions = field(default_factory=RunOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:  # torch's generator on the CPU looks at no more bits
            raise UserError(f"seed: {self.seed}: must be from 0 to {2**32 - 1}")
        if self.run.validate_every and not self.data.validation_share:
            raise UserError(
                f"run.validate_every: {self.run.validate_every}: nothing is held out to validate on: "
                f"give data.validation_share, e.g. 0.05, or leave validate_every out"
            )
        self._check_cooldown()

    def _check_cooldown(self) -> None:
        """Raise UserError for a schedule that would be another one: constant, or never at the full rate."""
        steps, last = self.optimizer.cooldown_steps, self.run.max_steps
        if self.optimizer.schedule != "cooldown":
            return
        if not steps:
            raise UserError(
                "optimizer.cooldown_steps: 0: the schedule 'cooldown' needs to know in how many of the last steps the rate "
                "falls: give optimizer.cooldown_steps, or another optimizer.schedule"
            )
        if last is not None and steps > last:  # without max_steps, asked again when the steps of an epoch are known
            raise UserError(
                f"optimizer.cooldown_steps: {steps}: more than the run's {last} steps: give fewer, or set run.max_steps higher"
            )

    def to_yaml(self) -> str:
        """Everything, every default written out."""
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False, allow_unicode=True)


#: What may change when a run goes on: nothing in it decides what is learnt. The dataset may have moved; that it is the
#: same one is what the loader checks.
_FREE = {
    "dataset",
    "run.save_every",
    "run.keep",
    "run.validate_every",
    "run.log",
    "data.cache",
    "model.checkpointing",
    "model.compile",
}


def read(path: Path | None, overrides: Mapping[str, Any]) -> Config:
    """The configuration of a file (or of nothing), with values of the command line by dotted name.

    Raises UserError naming file and key.
    """
    document: Any = {}
    if path is not None:
        try:
            document = yaml.safe_load(path.read_text()) or {}
        except OSError as error:
            raise UserError(f"--config {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"--config {path}: no valid YAML: {error}") from None
    where = "" if path is None else f"{path}: "
    if not isinstance(document, dict):
        raise UserError(f"{where}must hold keys and values, not {type(document).__name__}")
    for name, value in overrides.items():
        *sections, key = name.split(".")
        place = document
        for section in sections:
            if place.get(section) is None:  # not there, or named in the file and left empty
                place[section] = {}
            place = place[section]
            if not isinstance(place, dict):
                raise UserError(f"{name}: {section} is {place!r}, which holds no keys and values")
        place[key] = value
    if not document.get("dataset"):
        raise UserError("no dataset: give --data DIR, made by `pipeline convert`")
    if not (isinstance(document.get("model"), dict) and document["model"].get("path")):
        raise UserError("no model: give --model, a directory or a hub name")
    data = {} if document.get("data") is None else document["data"]
    document["data"] = _DATA_DEFAULTS | data if isinstance(data, dict) else data
    made: Config = _build(Config, document, where, "")
    return made


def compare(frozen: Config, given: Config) -> list[str]:
    """What stands between a run and going on with another configuration, in words; empty where nothing does."""
    old, new = _flat(_plain(asdict(frozen))), _flat(_plain(asdict(given)))
    free = set(_FREE)
    if frozen.optimizer.schedule == "constant":
        free.add("run.max_steps")  # in the other schedules the last step decides every rate
    return [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in free
    ]


def _build(kind: type, document: Any, where: str, prefix: str) -> Any:
    """A dataclass from a mapping. Raises UserError for unknown, missing and mistyped keys."""
    if not isinstance(document, dict):
        raise UserError(f"{where}{prefix.rstrip('.') or 'the file'} must hold keys and values")
    known = {f.name: f for f in fields(kind)}
    for key in document:
        if key not in known:
            raise UserError(f"{where}{prefix}{key}: no such option; known are {', '.join(known)}")
    hints = get_type_hints(kind)
    values = {}
    for name, f in known.items():
        if name in document:
            values[name] = _value(hints[name], document[name], where, prefix + name)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{where}{prefix}{name}: missing")
    return kind(**values)


def _value(hint: Any, given: Any, where: str, name: str) -> Any:
    """A value of the type that an option has. Raises UserError."""
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        return _build(hint, {} if given is None else given, where, f"{name}.")
    options = get_args(hint) if get_origin(hint) is not None else (hint,)
    if type(None) in options:
        if given is None:
            return None
        return _value(next(option for option in options if option is not type(None)), given, where, name)
    if get_origin(hint) is Literal:
        if given not in options:
            raise _mistyped(given, where, name, f"one of {', '.join(map(str, options))}")
        return given
    wanted = hint if isinstance(hint, type) else get_origin(hint)
    if wanted is float:
        return _number(given, where, name)
    if wanted is int:
        return _whole(given, where, name)
    if wanted is tuple:
        texts = [given] if isinstance(given, str) else given
        if not (isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)):
            raise _mistyped(given, where, name, "a list of names")
        return tuple(texts)
    words = {bool: "true or false", str: "text"}
    if not isinstance(given, wanted):
        raise _mistyped(given, where, name, words.get(wanted, "keys and values"))
    if isinstance(given, dict):  # weights by stream
        return {str(stream): _number(weight, where, f"{name}.{stream}") for stream, weight in given.items()}
    return given


def _number(given: Any, where: str, name: str) -> float:
    """A finite number. Raises UserError."""
    try:
        number = float(given)  # YAML reads 1e-5, without a point, as text
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(given, bool) or not math.isfinite(number):
        raise _mistyped(given, where, name, "a number")
    return number


def _whole(given: Any, where: str, name: str) -> int:
    """A whole number, also one that is written as 1e3 or 1000.0. Raises UserError."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    try:
        number = math.nan if isinstance(given, bool) else float(given)  # YAML reads 1e3, without a point, as text
    except (TypeError, ValueError):
        number = math.nan
    if not number.is_integer():
        raise _mistyped(given, where, name, "a whole number")
    return int(number)


def _mistyped(given: Any, where: str, name: str, wanted: str) -> UserError:
    """What is said of a value that its option cannot have."""
    remedy = "; leave it out for its default" if given is None else ""  # as in --set data.cells=
    return UserError(f"{where}{name}: {given!r}: must be {wanted}{remedy}")


def _least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise UserError(f"{name}: {value}: must be at least {least}")


def _plain(value: Any) -> Any:
    """Tuples as lists, as YAML knows them."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return flat
