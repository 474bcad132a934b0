"""Which streams of a dataset are trained with, in which order and with which weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.store.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream that is trained with. ``kind``: input, output or internal, as in the layout."""

    name: str
    kind: str
    loss: float
    silence_loss: float


@dataclass(frozen=True)
class ChosenStreams:
    """C streams of a dataset. *Chosen number*: place in ``streams``; *layout number*: place in the dataset's layout."""

    #: The streams, with the weights that count.
    streams: tuple[Stream, ...]
    #: Layout number of every chosen stream. [C]
    layout_numbers: tuple[int, ...]
    #: How many streams the layout has.
    layout_size: int
    #: (chosen number, rows from tick to tick, token) of every chosen clock.
    clocks: tuple[tuple[int, int, int], ...]
    silence_id: int
    #: bool [C, C], row = who reads; None where every stream reads every stream.
    visibility: NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.streams)

    @cached_property
    def chosen_number(self) -> NDArray[np.int64]:
        """Chosen number by layout number, -1 where the stream was not chosen. [layout's streams]"""
        numbers = np.full(self.layout_size, -1, np.int64)
        numbers[list(self.layout_numbers)] = np.arange(len(self))
        return numbers

    @cached_property
    def trained(self) -> NDArray[np.int64]:
        """Chosen numbers of the streams with a loss, in the layout's order: that of the spans."""
        return np.array(
            [
                number
                for _, number in sorted(zip(self.layout_numbers, range(len(self)), strict=True))
                if self.loss[number]
            ],
            np.int64,
        )

    @cached_property
    def loss(self) -> NDArray[np.float32]:
        """Weights. [C]"""
        return np.array([stream.loss for stream in self.streams], np.float32)

    @cached_property
    def stay_loss(self) -> NDArray[np.float32]:
        """Weights of silence → silence. [C]"""
        return np.array([stream.loss * stream.silence_loss for stream in self.streams], np.float32)


def choose(
    dataset: Dataset,
    names: tuple[str, ...] | None = None,
    loss: Mapping[str, float] | None = None,
    silence_loss: Mapping[str, float] | None = None,
) -> ChosenStreams:
    """The streams to train with. See :class:`trainer.data.options.DataOptions`. Raises UserError."""
    layout = dataset.layout
    index = layout.index()
    names = tuple(index) if names is None else names
    _known("data.streams", names, index)
    if not names:
        raise UserError(f"data.streams: none given; the dataset has {', '.join(index)}")
    if len(set(names)) < len(names):
        raise UserError(f"data.streams: {', '.join(names)}: every stream can be given once")
    for option, weights in (("data.loss", loss or {}), ("data.silence_loss", silence_loss or {})):
        _known(option, weights, index)
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"{option}.{name}: {weight}: must be a number from 0")
    streams = tuple(
        Stream(
            name,
            stream.kind,
            float((loss or {}).get(name, stream.loss)),
            float((silence_loss or {}).get(name, stream.silence_loss)),
        )
        for name, stream in ((name, layout.streams[index[name]]) for name in names)
    )
    if not any(stream.loss for stream in streams):
        raise UserError(
            f"data.streams: {', '.join(names)}: none of them has a loss weight, so there is nothing to learn; "
            f"add a stream that the model writes, or give one a weight with data.loss"
        )
    sees = np.array([[layout.sees(reader, other) for other in names] for reader in names], np.bool_)
    layout_numbers = tuple(index[name] for name in names)
    return ChosenStreams(
        streams,
        layout_numbers,
        len(layout.streams),
        tuple(
            (layout_numbers.index(number), every, tick)
            for number, every, tick in dataset.silence.clocks
            if number in layout_numbers
        ),
        int(dataset.silence.tokens[0]),
        None if sees.all() else sees,
    )


def _known(option: str, names: Mapping[str, float] | tuple[str, ...], index: Mapping[str, int]) -> None:
    unknown = [name for name in names if name not in index]
    if unknown:
        raise UserError(f"{option}: {', '.join(unknown)}: no such stream; the dataset has {', '.join(index)}")
