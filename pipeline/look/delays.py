"""How long an answer is waited for, turn by turn (polars)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.read.conversation import INPUT_ROLES
from pipeline.store.dataset import Columns


class Delays(NamedTuple):
    """Rows to the first answer token, one element per turn that has both a user part and an answer. [turns]"""

    #: The grid that the turn is in, by its number in the shard; ascending.
    grid: NDArray[np.int64]
    #: From the last row of the user's last part before the answer. 2 is the soonest that the answer can depend on it.
    from_end: NDArray[np.int32]
    #: From the first row of the user's parts in the turn.
    from_start: NDArray[np.int32]


def span_table(columns: Columns) -> pl.DataFrame:
    """The spans of a shard: stream, part (numbered through the shard; -1: generated), first row, tokens."""
    spans = columns.spans
    first_part = columns.parts[0][:-1]
    grid_part = np.repeat(first_part, np.diff(spans.grid_offsets))
    return pl.DataFrame(
        {
            "stream": spans.stream,
            "part": np.where(spans.part >= 0, spans.part + grid_part, -1),
            "start": spans.start,
            "length": np.diff(spans.token_offsets),
        }
    )


def answer_delays(columns: Columns, spans: pl.DataFrame) -> Delays:
    """The delays of a shard's answers. ``spans``: its :func:`span_table`. Parts without tokens are left out."""
    offsets, roles, _, _ = columns.parts
    written = (
        spans.group_by("part")
        .agg(pl.col("start").min().alias("first"), (pl.col("start") + pl.col("length")).max().alias("end"))
        .with_columns(pl.col("part").cast(pl.UInt32, strict=False))
    )
    parts = (
        pl.DataFrame({"role": pl.Series(roles, dtype=pl.String)})
        .with_row_index("part")
        .with_columns(grid=pl.Series(np.repeat(np.arange(len(columns)), np.diff(offsets))))
        .filter(pl.col("role") != "result")
        .with_columns(input=pl.col("role").is_in(list(INPUT_ROLES)))
    )
    # A turn begins with a part of the world's that follows one of the model's, results aside: turn_starts.
    new_turn = pl.col("input") & ~pl.col("input").shift(1).over("grid").fill_null(True)
    turns = parts.with_columns(turn=new_turn.cum_sum()).join(written, on="part", how="inner").sort("part")
    answers = (
        turns.filter(pl.col("role") == "answer")
        .group_by("grid", "turn", maintain_order=True)
        .agg(pl.col("part").first().alias("answer"), pl.col("first").first().alias("begun"))
    )
    inputs = turns.filter(pl.col("role") == "user").join(
        answers, on=["grid", "turn"], how="inner", maintain_order="left"
    )
    delays = (
        inputs.filter(pl.col("part") < pl.col("answer"))
        .group_by("grid", "turn", maintain_order=True)
        .agg(
            (pl.col("begun").last() - (pl.col("end").last() - 1)).alias("from_end"),
            (pl.col("begun").last() - pl.col("first").min()).alias("from_start"),
        )
    )
    return Delays(
        delays["grid"].cast(pl.Int64).to_numpy(),
        delays["from_end"].cast(pl.Int32).to_numpy(),
        delays["from_start"].cast(pl.Int32).to_numpy(),
    )
