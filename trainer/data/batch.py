"""What the loader hands to the trainer: one packed sequence of S cells.

S is the same for every pack, so that nothing is compiled twice. Packs of a step have no order among each other; the
trainer runs them one by one or lays several end to end. The mask is not in here: it is what
``trainer.attention.build_index(batch.rows, batch.streams, batch.docs, batch.silent, loader.visibility)`` says, and
``attention`` where the loader was asked to build it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trainer.attention import Index

#: Target of a cell that trains nothing: what torch's cross-entropy leaves out.
NO_TARGET = -100


class Kind(IntEnum):
    """What a cell's target is to the cell; the loss is reported by it."""

    NONE = 0  # nothing is trained
    SPEECH = 1  # speech → speech
    START = 2  # silence → speech
    STOP = 3  # speech → silence
    SILENCE = 4  # silence → silence


class Batch(NamedTuple):
    """One pack: whole conversations, then padding; sorted by (doc, row, stream). All arrays are [S]."""

    #: int32: the token of the cell; the silence id for silent cells and for padding.
    ids: NDArray[np.int32]
    #: int32: number of the stream among the chosen ones (``loader.streams``); 0 for padding.
    streams: NDArray[np.int32]
    #: int32: the row of the cell within its conversation, counted as positions are. The same array as ``positions``.
    rows: NDArray[np.int32]
    #: int32: position ids. The virtual row is 0 and row r of the grid r + 1; without virtual rows, r. 0 for padding.
    positions: NDArray[np.int32]
    #: int32: number of the conversation within the pack, from 0; -1 for padding, which stands last.
    docs: NDArray[np.int32]
    #: bool: cells that are keys for nobody but themselves: the silent ones in mode ``skip``, none in mode ``keys``.
    silent: NDArray[np.bool_]
    #: int32: the token to predict; ``NO_TARGET`` where nothing is trained.
    targets: NDArray[np.int32]
    #: float32: the weight of that prediction; 0 where nothing is trained, and only there.
    weights: NDArray[np.float32]
    #: int8: :class:`Kind`; 0 where nothing is trained, and only there.
    kinds: NDArray[np.int8]
    #: How many conversations the pack holds; 0 in a pack that only fills up an epoch's last step.
    conversations: int
    #: int64 [conversations]: which rows of the dataset they are, so that a pack that fails can be looked at.
    numbers: NDArray[np.int64]
    #: The attention index on the CPU, if ``with_index`` was asked for.
    attention: Index | None = None
