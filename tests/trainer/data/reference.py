"""DESIGN §9, cell by cell: which cells of one conversation exist and what they train. Slow and plain on purpose."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.store.dataset import Dataset
from trainer.data.cells import Conversations
from trainer.data.hashing import of_text
from trainer.data.streams import ChosenStreams, Stream

SILENCE = 999


@dataclass(frozen=True)
class Lane:
    """A stream of the layout."""

    name: str
    loss: float = 1.0
    silence_loss: float = 1.0
    clock: tuple[int, int] | None = None  # rows from tick to tick, token


@dataclass(frozen=True)
class Grid:
    """A conversation: for every stream of the layout its spans, each a first row and tokens."""

    id: str
    num_rows: int
    spans: dict[int, list[tuple[int, list[int]]]] = field(default_factory=dict)
    cut_short: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell that exists. ``stay``: its target is silence after silence, of which only a share is trained."""

    position: int
    stream: int
    token: int
    silent: bool
    target: int | None
    weight: float
    kind: int

    @property
    def stay(self) -> bool:
        return self.kind == 4


def chosen(lanes: list[Lane], names: list[str] | None = None) -> ChosenStreams:
    """The streams of these names, in that order."""
    index = {lane.name: number for number, lane in enumerate(lanes)}
    names = list(index) if names is None else names
    return ChosenStreams(
        tuple(Stream(n, "output", lanes[index[n]].loss, lanes[index[n]].silence_loss) for n in names),
        tuple(index[n] for n in names),
        len(lanes),
        tuple((c, *clock) for c, n in enumerate(names) if (clock := lanes[index[n]].clock) is not None),
        SILENCE,
        None,
    )


def flat(grids: list[Grid]) -> Conversations:
    """Grids as the trainer takes them."""
    spans = [
        (number, stream, start, tokens)
        for number, grid in enumerate(grids)
        for stream in sorted(grid.spans)
        for start, tokens in sorted(grid.spans[stream])
    ]
    return Conversations(
        np.array([grid.num_rows for grid in grids], np.int64),
        np.array([grid.cut_short for grid in grids], np.bool_),
        np.array([of_text(grid.id) for grid in grids], np.uint64),
        np.array([number for number, *_ in spans], np.int64),
        np.array([stream for _, stream, *_ in spans], np.int64),
        np.array([start for _, _, start, _ in spans], np.int64),
        np.array([len(tokens) for *_, tokens in spans], np.int64),
        np.array([token for *_, tokens in spans for token in tokens], np.int32),
    )


def of_dataset(dataset: Dataset) -> tuple[list[Grid], list[Lane]]:
    """A dataset's grids and streams; what was cut short must be said by the test."""
    layout, ticks = dataset.layout, dataset.manifest.tokenizer.tick_ids
    lanes = [
        Lane(s.name, s.loss, s.silence_loss, None if s.clock is None else (s.clock.every, ticks[s.name]))
        for s in layout.streams
    ]
    grids = []
    for grid in dataset:
        spans: dict[int, list[tuple[int, list[int]]]] = {}
        for span in grid.spans:
            spans.setdefault(layout.index()[span.stream], []).append((span.start, span.tokens.tolist()))
        grids.append(Grid(grid.id, grid.num_rows, spans))
    return grids, lanes


def said(grid: Grid, lanes: list[Lane], names: list[str]) -> list[list[int | None]]:
    """What every chosen stream says in every row of the grid; None where it is silent. [rows][streams]"""
    rows: list[list[int | None]] = [[None] * len(names) for _ in range(grid.num_rows)]
    for column, name in enumerate(names):
        stream = [lane.name for lane in lanes].index(name)
        for start, tokens in grid.spans.get(stream, []):
            for offset, token in enumerate(tokens):
                rows[start + offset][column] = token
        clock = lanes[stream].clock
        if clock is not None:
            every, tick = clock
            for row in range(0, grid.num_rows, every):
                rows[row][column] = tick
    return rows


def cells(
    grid: Grid, lanes: list[Lane], names: list[str], mode: str, virtual_rows: bool, silence_id: int = SILENCE
) -> list[Cell]:
    """All cells that exist where every silence → silence cell is trained (ρ = 1), in their order."""
    by_name = {lane.name: lane for lane in lanes}
    rows = said(grid, lanes, names)
    silence: list[int | None] = [None] * len(names)
    if virtual_rows:
        rows = [silence, *rows]
    closing = [silence] if virtual_rows and not grid.cut_short else []
    found = []
    for position, row in enumerate(rows):
        following = [*rows, *closing][position + 1 : position + 2]
        for column, token in enumerate(row):
            lane = by_name[names[column]]
            target, weight, kind = None, 0.0, 0
            if following and lane.loss > 0:
                now, then = token is not None, following[0][column] is not None
                kind = {(True, True): 1, (False, True): 2, (True, False): 3, (False, False): 4}[now, then]
                weight = lane.loss * (lane.silence_loss if kind == 4 else 1.0)
                target = following[0][column] if then else silence_id
                if weight == 0:
                    target, kind = None, 0
            if mode == "skip" and token is None and target is None:
                continue
            silent = token is None
            found.append(Cell(position, column, silence_id if token is None else token, silent, target, weight, kind))
    return found


def mask(
    positions: NDArray[np.int32], docs: NDArray[np.int32], silent: NDArray[np.bool_], streams: NDArray[np.int32],
    sees: NDArray[np.bool_],
) -> NDArray[np.bool_]:  # fmt: skip
    """Who attends to whom, by definition: bool [S, S], row = who reads."""
    size = len(positions)
    found = np.eye(size, dtype=np.bool_)
    for i in range(size):
        for j in range(size):
            same = docs[i] == docs[j] >= 0
            if same and positions[j] < positions[i] and sees[streams[i], streams[j]] and not silent[j]:
                found[i, j] = True
    return found
