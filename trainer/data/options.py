"""What a user decides about the data of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from pipeline.errors import UserError

Silence = Literal["skip", "keys"]
TooLong = Literal["error", "drop"]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Raises UserError naming the option as the trainer does (``data.cells``), where a value makes no sense.

    ``cells``            S, the positions of one pack.
    ``packs_per_step``   packs of one optimiser step on all ranks together; a multiple of the world size.
    ``seed``             decides order and places of sampled silence, together with the epoch.
    ``streams``          names of the streams to train with, in this order; None: all, in the layout's order.
    ``loss``             weights by stream that replace the layout's; 0: the stream is read and not predicted.
    ``silence_loss``     weights of silence → silence by stream, times ``loss``, that replace the layout's; 0: never trained.
    ``silence``          ``skip``: a silent cell is nobody's key and exists only to be trained; ``keys``: all cells exist.
    ``virtual_rows``     a silent row before the first and one after the last; without them, the paper's behaviour.
    ``silence_rate``     ρ: the share of silence → silence cells that is trained, with weights that make up for it; in both modes.
    ``too_long``         conversations of more than ``cells`` positions: ``error`` refuses the dataset, ``drop`` counts them.
    ``validation_share`` conversations held out, chosen by the hash of their raw record: the same ones for every seed.
    ``cache``            a folder for the decoded dataset; None: beside its files, or the user's cache folder.
    """

    cells: int
    packs_per_step: int
    seed: int = 0
    streams: tuple[str, ...] | None = None
    loss: Mapping[str, float] = field(default_factory=dict)
    silence_loss: Mapping[str, float] = field(default_factory=dict)
    silence: Silence = "skip"
    virtual_rows: bool = True
    silence_rate: float = 0.1
    too_long: TooLong = "error"
    validation_share: float = 0.0
    cache: str | None = None

    def __post_init__(self) -> None:
        _whole("data.cells", self.cells, least=1)
        if self.cells >= 2**31:
            raise UserError(f"data.cells: {self.cells}: must be below {2**31}")
        _whole("data.packs_per_step", self.packs_per_step, least=1)
        _whole("data.seed", self.seed, least=0)
        _one_of("data.silence", self.silence, get_args(Silence))
        _one_of("data.too_long", self.too_long, get_args(TooLong))
        if not 0 < self.silence_rate <= 1:
            raise UserError(f"data.silence_rate: {self.silence_rate}: must be above 0 and at most 1")
        if not 0 <= self.validation_share < 1:
            raise UserError(f"data.validation_share: {self.validation_share}: must be at least 0 and below 1")

    def decisive(self) -> dict[str, Any]:
        """What decides which cells are trained when, as plain values: a run may only go on with the same."""
        document = asdict(self)
        del document["cache"], document["seed"]
        document["loss"], document["silence_loss"] = dict(self.loss), dict(self.silence_loss)
        document["streams"] = None if self.streams is None else list(self.streams)
        return document


def _whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name}: {value!r}: must be a whole number from {least}")


def _one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise UserError(f"{name}: {value!r}: must be one of {', '.join(valid)}")
