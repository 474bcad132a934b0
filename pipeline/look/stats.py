"""What a dataset holds, in numbers (polars)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.look.cells import visible
from pipeline.look.delays import answer_delays, span_table
from pipeline.store.dataset import Dataset

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


class Distribution(msgspec.Struct, frozen=True):
    """Some numbers in few. Quantiles are interpolated linearly."""

    count: int
    mean: float
    min: int
    median: float
    p90: float
    max: int


class StreamFigures(msgspec.Struct, frozen=True):
    """One stream."""

    name: str
    kind: str
    tokens: int
    #: Of all tokens of the dataset.
    share: float
    #: Of the stream's own cells, those that are not silent.
    density: float


class Passes(msgspec.Struct, frozen=True):
    """Forward passes to go through every grid once, one token of a stream per pass."""

    #: As one sequence: a pass for every token.
    one_sequence: int
    #: As streams: a pass for every row.
    streams: int
    #: The first divided by the second; the gain. 0 where there are no rows.
    ratio: float


class AnswerDelay(msgspec.Struct, frozen=True):
    """Rows from the end of the input to the first token of the answer, turn by turn; see :func:`stats`."""

    rows: Distribution
    #: The share of turns that are answered before or while the last token of their input is read.
    early: float


class Longest(msgspec.Struct, frozen=True):
    """The grid with the most rows (the first of them)."""

    id: str
    rows: int


class Stats(msgspec.Struct, frozen=True):
    """What a dataset holds."""

    #: Records: read = converted + quarantined + filtered.
    read: int
    converted: int
    quarantined: int
    filtered: int
    truncated: int
    grids: int
    tokens: int
    #: Rows times streams, over all grids.
    cells: int
    #: tokens / cells; 0 where there are none.
    density: float
    streams: list[StreamFigures]
    passes: Passes
    #: None where there are no grids.
    rows: Distribution | None
    longest: Longest | None
    #: None where no turn has both a user part and an answer with tokens.
    answer_delay: AnswerDelay | None
    quarantine_reasons: dict[str, int]
    dropped_parts: dict[str, int]
    silence_in_content: int


def stats(dataset: Dataset) -> Stats:
    """Count a dataset, one shard at a time.

    The answer's delay is taken for every turn (:func:`pipeline.plan.turns.turn_starts`) that has a user part
    and an answer part: the first row of its first answer part, minus the last row of the last user part that
    precedes it in the turn. 2 is the soonest that an answer can depend on the last token of its input; at 0
    and below it began before the input had ended. Parts without tokens are left out.
    """
    streams = dataset.layout.streams
    per_stream = np.zeros(len(streams), np.int64)
    rows: list[NDArray[np.int32]] = []
    delays: list[NDArray[np.int32]] = []
    longest: Longest | None = None
    for number in range(len(dataset.manifest.shards)):
        columns = dataset.shard(number)
        own = columns.spans.num_rows
        if len(own):
            rows.append(np.array(own))
            most = int(own.argmax())
            if longest is None or own[most] > longest.rows:
                longest = Longest(columns.ids[most], int(own[most]))
        spans = span_table(columns)
        said = spans.group_by("stream").agg(pl.col("length").sum())
        per_stream[said["stream"].to_numpy()] += said["length"].to_numpy()
        delays.append(answer_delays(columns, spans).from_end)

    counts = dataset.manifest.counts
    row_count = pl.concat([pl.Series("rows", part) for part in rows]) if rows else pl.Series("rows", [], pl.Int32)
    delay = pl.Series("delay", np.concatenate([np.empty(0, np.int32), *delays]))
    tokens = int(per_stream.sum())
    all_rows = int(row_count.cast(pl.Int64).sum())
    spread = _distribution(delay)
    return Stats(
        read=counts.read,
        converted=counts.converted,
        quarantined=counts.quarantined,
        filtered=counts.filtered,
        truncated=counts.truncated,
        grids=len(row_count),
        tokens=tokens,
        cells=all_rows * len(streams),
        density=_ratio(tokens, all_rows * len(streams)),
        streams=[
            StreamFigures(s.name, s.kind, int(said), _ratio(said, tokens), _ratio(said, all_rows))
            for s, said in zip(streams, per_stream.tolist(), strict=True)
        ],
        passes=Passes(tokens, all_rows, _ratio(tokens, all_rows)),
        rows=_distribution(row_count),
        longest=longest,
        answer_delay=None if spread is None else AnswerDelay(spread, _ratio(int((delay <= 0).sum()), len(delay))),
        quarantine_reasons=dict(counts.quarantine_reasons),
        dropped_parts=dict(counts.dropped_parts),
        silence_in_content=counts.silence_in_content,
    )


def _distribution(values: pl.Series) -> Distribution | None:
    if not len(values):
        return None
    frame = values.to_frame("x").select(
        mean=pl.col("x").mean(),
        min=pl.col("x").min(),
        median=pl.col("x").median(),
        p90=pl.col("x").quantile(0.9, "linear"),
        max=pl.col("x").max(),
    )
    return Distribution(count=len(values), **frame.row(0, named=True))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


# In a terminal

#: More streams than this do not fit on one screen: the others are summed.
_MOST_STREAMS = 12
_BAR = 24
_STYLES = {"input": "cyan", "output": "green", "internal": "magenta"}


def render(figures: Stats, console: Console) -> None:
    """Print the figures: one screen, 80 columns."""
    from rich.table import Table

    console.print(
        f"[bold]{figures.grids:,} grids[/] · {figures.tokens:,} tokens · {figures.passes.streams:,} rows · "
        f"density {figures.density:.0%}\n"
    )
    if figures.tokens:
        console.print(_stream_table(figures))
        console.print()
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for name, fact in _facts(figures):
        facts.add_row(name, fact)
    console.print(facts)


def _stream_table(figures: Stats) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stream", max_width=20, no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for name in ("tokens", "share", "density"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    shown = figures.streams
    others: list[StreamFigures] = []
    if len(shown) > _MOST_STREAMS:
        ranked = sorted(shown, key=lambda stream: -stream.tokens)
        kept = {stream.name for stream in ranked[: _MOST_STREAMS - 1]}
        others = [stream for stream in shown if stream.name not in kept]
        shown = [stream for stream in shown if stream.name in kept]
    most = max(stream.share for stream in figures.streams)
    for stream in shown:
        style = _STYLES[stream.kind]
        bar = "█" * round(_BAR * stream.share / most)
        table.add_row(
            Text(visible(stream.name), style=f"bold {style}"),
            stream.kind,
            f"{stream.tokens:,}",
            f"{stream.share:.0%}",
            f"{stream.density:.0%}",
            Text(bar, style=style),
        )
    if others:
        tokens, share = sum(s.tokens for s in others), sum(s.share for s in others)
        table.add_row(f"{len(others)} others", "", f"{tokens:,}", f"{share:.0%}", "", "")
    return table


def _facts(figures: Stats) -> Iterator[tuple[str, Text]]:
    from rich.text import Text

    passes, rows, delay = figures.passes, figures.rows, figures.answer_delay
    if passes.streams:
        yield (
            "forward passes",
            Text.assemble(
                f"{passes.one_sequence:,} as one sequence · {passes.streams:,} as streams · gain ",
                (f"{passes.ratio:.2f}×", "bold green"),
            ),
        )
    if rows is not None and figures.longest is not None:
        yield (
            "rows per grid",
            Text(
                f"min {rows.min:,} · median {rows.median:,.0f} · mean {rows.mean:,.1f} · "
                f"p90 {rows.p90:,.0f} · max {rows.max:,}: {visible(figures.longest.id)}"
            ),
        )
    if delay is not None:
        spread = delay.rows
        yield (
            "answer begins",
            Text(
                f"median {spread.median:,.0f} · mean {spread.mean:,.1f} · p90 {spread.p90:,.0f} rows after "
                f"the end of the input; {delay.early:.0%} of {spread.count:,} turns before it"
            ),
        )
    yield (
        "records",
        Text(
            f"{figures.read:,} read = {figures.converted:,} converted + "
            f"{figures.quarantined:,} quarantined + {figures.filtered:,} filtered"
        ),
    )
    for name, counts in (
        ("quarantined", figures.quarantine_reasons),
        ("dropped parts", figures.dropped_parts),
    ):
        if counts:
            ranked = sorted(counts.items(), key=lambda item: -item[1])
            yield name, Text(" · ".join(f"{count:,} {reason}" for reason, count in ranked))
    if figures.truncated:
        yield "truncated", Text(f"{figures.truncated:,} conversations lost their later turns")
    if figures.silence_in_content:
        yield (
            "silence",
            Text(f"{figures.silence_in_content:,} content tokens are the token that stands for silence"),
        )
