"""What two datasets of the same source have in common and where they differ: figures, and how they are shown."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from pipeline.look.cells import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class StreamTokens(msgspec.Struct, frozen=True):
    """One stream, over the conversations that are in both datasets."""

    name: str
    kind: str
    tokens: int
    #: Of the stream's own cells, those that are not silent.
    density: float


class Delay(msgspec.Struct, frozen=True):
    """Rows to the first answer token, over the turns that have an answer (:class:`pipeline.look.delays.Delays`)."""

    turns: int
    median_from_start: float
    median_from_end: float
    #: The share of turns that are answered before or while the last token of their input is read.
    early: float


class Side(msgspec.Struct, frozen=True):
    """One of the two datasets. All from ``rows`` on is of the conversations that are in both."""

    place: str
    recipe: str
    planner: str
    layout: str
    tokenizer: str
    #: Records of the whole dataset.
    converted: int
    quarantined: int
    filtered: int
    #: Converted here, but not in the other.
    only_here: int
    rows: int
    tokens: int
    #: tokens / (rows times streams)
    density: float
    #: Forward passes as one sequence for every one as streams.
    tokens_per_row: float
    streams: list[StreamTokens]
    #: None where no turn has both a user part and an answer with tokens.
    delay: Delay | None


class Against(msgspec.Struct, frozen=True):
    """Conversations by what B needs for them, against A: fewer rows, as many, more."""

    fewer: int
    equal: int
    more: int


class Grids(msgspec.Struct, frozen=True):
    """What one dataset made of a conversation."""

    #: Of the first grid: what ``pipeline show --id`` takes.
    id: str
    rows: int
    #: Mean over its turns: rows from the first row of the input to the first token of the answer. None: no such turn.
    answer_begins: float | None


class Apart(msgspec.Struct, frozen=True):
    """One conversation in both."""

    a: Grids
    b: Grids


class Comparison(msgspec.Struct, frozen=True):
    """Two datasets side by side."""

    a: Side
    b: Side
    #: Conversations in both.
    common: int
    #: Records of the same file and number but with other bytes; they are not in both.
    changed: int
    #: Of recipe, layout, tokenizer and inputs, one line each.
    differences: list[str]
    #: Whether both have the same tokenizer. If not, the fields below say nothing: they are None, or empty.
    comparable: bool
    #: Rows of A minus rows of B.
    rows_saved: int | None
    #: Rows of B divided by rows of A, conversation by conversation.
    median_ratio: float | None
    rows: Against | None
    #: By the mean delay of the answers, from the first row of the input. None also where there are no answers.
    answer: Against | None
    #: Those whose rows differ most, then those whose answers do; the most first.
    apart: list[Apart]


# In a terminal

#: More differences than this do not help a reader; --json has all.
_MOST_DIFFERENCES = 12
_STYLES = {"input": "cyan", "output": "green", "internal": "magenta"}
_NOTHING = "–"


def render(comparison: Comparison, console: Console) -> None:
    """Print the comparison for 80 columns; only the commands at its end may be longer, so that they can be copied."""
    from rich.text import Text

    console.print(_who(comparison))
    console.print()
    console.print(_sums(comparison))
    console.print()
    console.print(_streams(comparison))
    silent = _silent(comparison)
    if silent:
        console.print(Text(f"nothing is said in {', '.join(silent)}", style="dim"))
    console.print()
    if comparison.comparable:
        console.print(_verdict(comparison))
        console.print(_saved(comparison))
    else:
        console.print(
            "[bold yellow]The tokenizers differ[/], so rows and tokens of A and B are of different kinds and are not "
            "compared, conversation by conversation. Tokens per row and density are ratios within each."
        )
    if comparison.apart:
        console.print()
        console.print(_apart_table(comparison))
        console.print()
        for side, grids in ((comparison.a, comparison.apart[0].a), (comparison.b, comparison.apart[0].b)):
            command = f"pipeline show {shlex.quote(side.place)} --id {shlex.quote(grids.id)}"
            console.print(Text(visible(command)), soft_wrap=True)


def _who(comparison: Comparison) -> Table:
    """Which two, what they have in common, and how they differ."""
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, side in (("A", comparison.a), ("B", comparison.b)):
        made = f"recipe {side.recipe}, planner {side.planner}, layout {side.layout}, tokenizer {side.tokenizer}"
        facts.add_row(name, Text.assemble(visible(side.place), "\n", (visible(made), "dim")))
    facts.add_row("in both", f"{_count(comparison.common, 'conversation')}; all figures are of these")
    for name, side, other in (("A", comparison.a, comparison.b), ("B", comparison.b, comparison.a)):
        if side.only_here:
            why = [f"{count:,} {what}" for count, what in _losses(other) if count]
            without = "BA"["AB".index(name)]
            facts.add_row(
                f"only in {name}", f"{side.only_here:,}" + (f"; {without} has {', '.join(why)}" if why else "")
            )
    if comparison.changed:
        facts.add_row("changed", f"{_count(comparison.changed, 'record')} of the same number, but with other bytes")
    shown = comparison.differences[:_MOST_DIFFERENCES]
    if len(comparison.differences) > len(shown):
        shown.append(f"… and {len(comparison.differences) - len(shown)} more; --json lists all")
    said = "\n".join(map(visible, shown)) or "nothing: the same recipe, layout, tokenizer and inputs"
    facts.add_row("differences", Text(said))
    return facts


def _losses(side: Side) -> Iterator[tuple[int, str]]:
    yield side.quarantined, "in quarantine"
    yield side.filtered, "filtered out"


def _sums(comparison: Comparison) -> Table:
    from rich.table import Table

    a, b = comparison.a, comparison.b
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for name in ("A", "B", "B against A"):
        table.add_column(name, justify="right", no_wrap=True)
    against = [_change(a.rows, b.rows), _change(a.tokens, b.tokens)] if comparison.comparable else [_NOTHING, _NOTHING]
    table.add_row("rows (forward passes)", f"{a.rows:,}", f"{b.rows:,}", against[0])
    table.add_row("tokens", f"{a.tokens:,}", f"{b.tokens:,}", against[1])
    table.add_row("tokens per row", f"{a.tokens_per_row:.2f}", f"{b.tokens_per_row:.2f}", "")
    table.add_row("density", f"{a.density:.0%}", f"{b.density:.0%}", "")
    if a.delay is not None or b.delay is not None:
        table.add_row("[bold]median rows to the answer[/]")
        for name in ("median_from_start", "median_from_end"):
            ours, theirs = (None if side.delay is None else getattr(side.delay, name) for side in (a, b))
            table.add_row(
                f"  from the input's {'start' if name == 'median_from_start' else 'end'}",
                *(_NOTHING if value is None else f"{value:,.0f}" for value in (ours, theirs)),
                f"{theirs - ours:+,.0f}" if comparison.comparable and ours is not None and theirs is not None else "",
            )
        table.add_row(
            "  before its end, of turns",
            *(_NOTHING if side.delay is None else f"{side.delay.early:.0%}" for side in (a, b)),
        )
    return table


def _streams(comparison: Comparison) -> Table:
    """Tokens and density, stream by stream; a stream that only one of them has is empty in the other."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stream", max_width=20, no_wrap=True)
    for name in ("tokens A", "tokens B", "density A", "density B"):
        table.add_column(name, justify="right", no_wrap=True)
    a, b = ({stream.name: stream for stream in side.streams} for side in (comparison.a, comparison.b))
    silent = _silent(comparison)
    for name, stream in (b | a).items():
        if visible(name) in silent:
            continue
        pair = (a.get(name), b.get(name))
        table.add_row(
            Text(visible(name), style=f"bold {_STYLES[stream.kind]}"),
            *(_NOTHING if own is None else f"{own.tokens:,}" for own in pair),
            *(_NOTHING if own is None else f"{own.density:.0%}" for own in pair),
        )
    return table


def _silent(comparison: Comparison) -> list[str]:
    """The streams in which neither says anything."""
    streams = [*comparison.a.streams, *comparison.b.streams]
    spoken = {stream.name for stream in streams if stream.tokens}
    return [visible(name) for name in dict.fromkeys(stream.name for stream in streams) if name not in spoken]


def _verdict(comparison: Comparison) -> Table:
    """Who is faster, in how many conversations."""
    from rich.table import Table

    facts = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    facts.add_column("conversations", style="bold", no_wrap=True)
    for name in ("B faster", "equal", "B slower"):
        facts.add_column(name, justify="right", no_wrap=True)
    for name, against in (("to the last row", comparison.rows), ("to the first answer token", comparison.answer)):
        if against is not None:
            total = against.fewer + against.equal + against.more
            facts.add_row(name, *(f"{n:,} ({n / total:.0%})" for n in (against.fewer, against.equal, against.more)))
    return facts


def _saved(comparison: Comparison) -> str:
    saved, ratio = comparison.rows_saved or 0, comparison.median_ratio
    text = f"B needs {abs(saved):,} rows {'fewer' if saved > 0 else 'more'}" if saved else "B needs as many rows as A"
    return text if ratio is None else f"{text}; a conversation's rows in B are {ratio:.2f} of those in A, in the median"


def _apart_table(comparison: Comparison) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("most different", overflow="fold")
    for name in ("rows A", "rows B", "to answer A", "to answer B"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in comparison.apart:
        table.add_row(
            Text(visible(one.a.id)),
            f"{one.a.rows:,}",
            f"{one.b.rows:,}",
            *(_NOTHING if own.answer_begins is None else f"{own.answer_begins:,.0f}" for own in (one.a, one.b)),
        )
    return table


def _change(before: int, now: int) -> str:
    if before == now:
        return "equal"
    return f"{(now - before) / before:+.1%}" if before else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
