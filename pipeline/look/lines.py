"""A grid as lines of text: rows running to the right in blocks, like sheet music, or down, one line per row.

To the right, a lane reads as text; down, a row reads as what was said at once. Lines are made as they are
asked for: the first of a hundred thousand tokens is there at once, which is what a pager needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Literal, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from pipeline.layout import Stream
from pipeline.look.cells import CONTINUED, CROPPED, END, JOINER, SILENCE, crop, text_cell, visible
from pipeline.look.view import GridView, Placed

Orientation = Literal["auto", "right", "down"]

#: The narrowest terminal that is served; lines are never made for a narrower one.
MIN_WIDTH = 40

#: So many rows in which nobody speaks are told in one line.
_GAP = 8
#: With more lanes than this, a block shows those that speak in it, as a score leaves out resting instruments.
_FEW_LANES = 4
#: Rows that are looked at to choose orientation and widths.
_SAMPLE = 512
#: The widest column; a longer token is cropped.
_WIDEST = 32
#: Down: the width below which tokens cannot be read, and after how many lines the names are said again.
_NARROWEST, _NAMES_EVERY = 4, 40

_STYLES = {"input": "cyan", "output": "green", "internal": "magenta"}
_QUIET = "dim"
_SIGNS = (f"{SILENCE} silence", f"{END} end", f"{JOINER} joined", f"{CONTINUED} rest of a character")


class _Column(NamedTuple):
    """One row of the grid."""

    row: int
    #: What is said, by lane. Ticks of clocks included.
    said: dict[int, Placed]
    #: The widest body.
    width: int


class _Gap(NamedTuple):
    """Rows in which nobody speaks."""

    row: int
    rows: int


def grid_lines(view: GridView, width: int, orientation: Orientation = "auto", compact: bool = True) -> Iterator[Text]:
    """The lines that show a grid, each at most ``width`` columns (and never planned for fewer than 40).

    ``auto`` lets rows run to the right unless running down takes fewer lines, as it does for many busy lanes.
    ``compact`` tells eight or more rows in which nobody speaks in one line, and after the first block leaves
    out lanes that never speak, and where more than four do, those that are silent in a block.
    """
    width = max(width, MIN_WIDTH)
    if orientation == "auto":
        orientation = _fitting(view, width, compact)
    lines = _right(view, width, compact) if orientation == "right" else _down(view, width, compact)
    return chain(header(view, width), lines)


def header(view: GridView, width: int) -> Iterator[Text]:
    """What grid this is, its numbers, and what the signs mean."""
    yield _cropped(visible(view.id), width, "bold")
    facts = (
        f"{view.num_rows:,} rows · {view.num_tokens:,} tokens · {len(view.streams)} streams · "
        f"density {view.density:.0%}"
    )
    yield _cropped(facts, width, "")
    signs = Text(no_wrap=True)
    kinds = dict.fromkeys(stream.kind for stream in view.streams)
    for text, style in chain(((kind, _STYLES[kind]) for kind in kinds), ((sign, _QUIET) for sign in _SIGNS)):
        if signs.cell_len + 2 + len(text) <= width:
            signs.append("  " if signs else "").append(text, style=style)
    yield signs
    yield Text()


# Rows


def _rows(view: GridView, compact: bool) -> Iterator[_Column | _Gap]:
    """The rows of a grid, first to last."""
    lanes = view.lanes()
    heads = [next(lane, None) for lane in lanes]
    ticks = [
        (number, stream.clock.every, Placed(0, " ", text_cell(stream.clock.tick)))
        for number, stream in enumerate(view.streams)
        if stream.clock is not None
    ]
    row = 0
    while row < view.num_rows:
        spoken = min((head.row for head in heads if head is not None), default=view.num_rows)
        if compact and spoken - row >= _GAP:
            yield _Gap(row, spoken - row)
            row = spoken
            continue
        said = {number: tick for number, every, tick in ticks if row % every == 0}
        for number, head in enumerate(heads):
            if head is not None and head.row == row:
                said[number] = head
                heads[number] = next(lanes[number], None)
        yield _Column(row, said, max((placed.cell.width for placed in said.values()), default=1))
        row += 1


def _fitting(view: GridView, width: int, compact: bool) -> Literal["right", "down"]:
    """The orientation that takes fewer lines, judged by the first rows."""
    voices = _voices(view) if compact else list(range(len(view.streams)))
    if len(voices) <= _FEW_LANES:
        return "right"
    sample = list(islice(_rows(view, compact), _SAMPLE))
    if min(_widths(view, width, sample)) < _NARROWEST:
        return "right"
    blocks = [block for block in _blocks(sample, width - _gutter(view)) if isinstance(block, list)]
    lines = sum(2 + len(_speaking(block, voices) if compact else voices) for block in blocks)
    return "right" if lines <= len(sample) else "down"


# To the right


def _right(view: GridView, width: int, compact: bool) -> Iterator[Text]:
    gutter = _gutter(view)
    everyone = list(range(len(view.streams)))
    voices = _voices(view)
    first = True
    for block in _blocks(_rows(view, compact), width - gutter):
        if isinstance(block, _Gap):
            yield _gap_line(block, width)
            yield Text()
            continue
        yield _ruler(block, gutter)
        for number in everyone if first or not compact else _speaking(block, voices):
            yield _lane_line(view.streams[number], number, block, gutter)
        yield Text()
        first = False


def _blocks(rows: Iterable[_Column | _Gap], room: int) -> Iterator[list[_Column] | _Gap]:
    """Rows in blocks that fill ``room`` columns, and the gaps between them."""
    block: list[_Column] = []
    used = 0
    for row in rows:
        if isinstance(row, _Gap):
            if block:
                yield block
            yield row
            block, used = [], 0
            continue
        column = row._replace(width=min(row.width, _WIDEST, room - 1))
        if used + 1 + column.width > room:
            yield block
            block, used = [], 0
        block.append(column)
        used += 1 + column.width
    if block:
        yield block


def _voices(view: GridView) -> list[int]:
    """The lanes that are ever anything but silent."""
    names = {span.stream for span in view.spans}
    return [number for number, stream in enumerate(view.streams) if stream.name in names or stream.clock is not None]


def _speaking(block: list[_Column], voices: list[int]) -> list[int]:
    """The lanes that a compact block shows."""
    if len(voices) <= _FEW_LANES:
        return voices
    said = {number for column in block for number in column.said}
    return [number for number in voices if number in said]


def _ruler(block: list[_Column], gutter: int) -> Text:
    """Row numbers above the first column and every fifth, where there is room."""
    line = ""
    place = gutter + 1
    room = gutter + sum(1 + column.width for column in block)
    for number, column in enumerate(block):
        label = str(column.row)
        free = not line or len(line) < place
        if (number == 0 or column.row % 5 == 0) and free and place + len(label) <= max(room, gutter + 1 + len(label)):
            line = line.ljust(place) + label
        place += 1 + column.width
    return Text(line, style=_QUIET, no_wrap=True)


def _lane_line(stream: Stream, number: int, block: list[_Column], gutter: int) -> Text:
    style = _STYLES[stream.kind]
    line = Text(no_wrap=True)
    line.append(set_cell_size(_name(stream.name, gutter - 1), gutter), style=f"bold {style}")
    for column in block:
        placed = column.said.get(number)
        if placed is None:
            line.append((" " + SILENCE).ljust(1 + column.width), style=_QUIET)
        else:
            _append(line, placed, column.width, style if stream.clock is None else _QUIET)
    line.rstrip()
    return line


def _append(line: Text, placed: Placed, width: int, style: str) -> None:
    cell = crop(placed.cell, width)
    if placed.lead == JOINER:
        line.append(JOINER, style=_QUIET)
    else:
        line.append(" ")
    for text, quiet in cell.body:
        line.append(text, style=f"dim {style}" if quiet else style)
    line.append(" " * (width - cell.width))


def _gutter(view: GridView) -> int:
    """Columns for the names of the lanes, with one space after them."""
    return min(12, max((cell_len(stream.name) for stream in view.streams), default=0)) + 1


# Down


def _down(view: GridView, width: int, compact: bool) -> Iterator[Text]:
    rows = _rows(view, compact)
    sample = list(islice(rows, _SAMPLE))
    widths = _widths(view, width, sample)
    digits = len(str(view.num_rows))
    for number, row in enumerate(chain(sample, rows)):
        if number % _NAMES_EVERY == 0:
            if number:
                yield Text()
            yield _names_line(view, widths, digits)
        if isinstance(row, _Gap):
            yield _gap_line(row, width)
            continue
        line = Text(str(row.row).rjust(digits), style="", no_wrap=True)
        line.stylize(_QUIET)
        for lane, (stream, own) in enumerate(zip(view.streams, widths, strict=True)):
            placed = row.said.get(lane)
            line.append(" ")
            if placed is None:
                line.append((" " + SILENCE).ljust(1 + own), style=_QUIET)
            else:
                _append(line, placed, own, _STYLES[stream.kind] if stream.clock is None else _QUIET)
        line.rstrip()
        yield line


def _widths(view: GridView, width: int, sample: list[_Column | _Gap]) -> list[int]:
    """A width for every lane: what it needs, or if that does not fit, a fair share of the room."""
    needs = [min(cell_len(stream.name), 10) for stream in view.streams]
    for row in sample:
        if isinstance(row, _Column):
            for lane, placed in row.said.items():
                needs[lane] = max(needs[lane], min(placed.cell.width, _WIDEST))
    room = width - len(str(view.num_rows)) - 2 * len(needs)
    share = max(needs, default=1)
    while share > 1 and sum(min(need, share) for need in needs) > room:
        share -= 1
    widths = [min(need, share) for need in needs]
    left = room - sum(widths)
    for lane, need in enumerate(needs):
        if widths[lane] < need and left > 0:
            widths[lane] += 1
            left -= 1
    return widths


def _names_line(view: GridView, widths: list[int], digits: int) -> Text:
    line = Text(" " * digits, no_wrap=True)
    for stream, own in zip(view.streams, widths, strict=True):
        line.append("  ").append(set_cell_size(_name(stream.name, own), own), style=f"bold {_STYLES[stream.kind]}")
    line.rstrip()
    return line


# Both


def _gap_line(gap: _Gap, width: int) -> Text:
    return _cropped(f"⋯ {gap.rows:,} silent rows from row {gap.row:,} ⋯", width, _QUIET)


def _name(name: str, width: int) -> str:
    name = visible(name)
    return name if cell_len(name) <= width else set_cell_size(name, width - 1) + CROPPED


def _cropped(text: str, width: int, style: str) -> Text:
    line = Text(text, style=style, no_wrap=True)
    line.truncate(width, overflow="ellipsis")
    return line
