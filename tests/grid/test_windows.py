"""Windows partition a conversation, never cut where a stream speaks, and hold no more rows than asked."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import conversations

from pipeline.errors import Rejected
from pipeline.grid.schedule import schedule
from pipeline.grid.windows import split
from pipeline.layout_file import load_layout
from pipeline.plan.planners import build_planner
from pipeline.plan.turns import turn_starts
from pipeline.read.conversation import Part

LAYOUT = load_layout("agent")
PLANNERS: list[tuple[str, dict[str, Any]]] = [
    ("sequential", {}),
    ("agent", {"latency": 2, "max_latency": 9}),
    ("wait-k", {"k": 1}),
    ("wait-k", {"k": 0}),
    ("wait-k", {"unit": "token", "k": 2}),
]


@given(conversations(), st.sampled_from(PLANNERS), st.integers(1, 60), st.data())
@settings(max_examples=300)
def test_windows(parts: list[Part], planner: tuple[str, dict[str, Any]], limit: int, data: st.DataObject) -> None:
    segments = build_planner(*planner, LAYOUT)(parts)
    lengths = [data.draw(st.integers(0, 4)) for _ in segments]
    starts = schedule(segments, lengths, LAYOUT.written())
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    try:
        windows = list(split(parts, segments, starts, lengths, limit))
    except Rejected as rejected:
        assert rejected.reason == "too_long"
        assert max(ends) > limit  # whatever fits is never refused
        return
    # They partition parts and segments, and begin where turns begin.
    assert [i for w in windows for i in range(w.first_part, w.end_part)] == list(range(len(parts)))
    assert [i for w in windows for i in range(w.first_segment, w.end_segment)] == list(range(len(segments)))
    assert {w.first_part for w in windows} <= set(turn_starts(parts))
    for window in windows:
        own = range(window.first_segment, window.end_segment)
        assert {segments[i].part for i in own} == set(range(window.first_part, window.end_part))
        assert window.first_row == min(starts[i] for i in own)
        assert max(ends[i] for i in own) - window.first_row <= limit
        # No stream speaks across the cut, and nothing of a later window comes before it.
        later = range(window.end_segment, len(segments))
        assert max(ends[i] for i in own) <= min((starts[i] for i in later), default=10**9)
    # Each is as long as it can be.
    for window, following in pairwise(windows):
        both = range(window.first_segment, following.end_segment)
        cut = next_cut(parts, segments, starts, ends, following.first_part)
        first_piece = [i for i in both if segments[i].part < cut]
        assert max(ends[i] for i in first_piece) - window.first_row > limit


def next_cut(parts: list[Part], segments: list[Any], starts: list[int], ends: list[int], first_part: int) -> int:
    """The first turn after ``first_part`` at which the conversation can be cut; the end where there is none."""
    for turn in turn_starts(parts):
        before = [end for end, s in zip(ends, segments, strict=True) if s.part < turn]
        after = [start for start, s in zip(starts, segments, strict=True) if s.part >= turn]
        if turn > first_part and max(before) <= min(after):
            return turn
    return len(parts)


def test_the_first_window_is_known_before_a_later_turn_is_found_too_long() -> None:
    """Truncation keeps the first turns, however long the others are."""
    parts = [Part("user", "a", 0), Part("answer", "b", 1), Part("user", "c", 2), Part("answer", "d", 3)]
    segments = build_planner("sequential", {}, LAYOUT)(parts)
    lengths = [2, 2, 50, 2]
    windows = iter(split(parts, segments, schedule(segments, lengths, LAYOUT.written()), lengths, 10))
    assert next(windows).end_part == 2
    with pytest.raises(Rejected, match="too_long"):
        next(windows)


def test_without_parts_there_is_no_turn() -> None:
    assert turn_starts([]) == []


@pytest.mark.parametrize(
    ("roles", "starts"),
    [
        ("system user answer user answer", [0, 3]),
        ("system user answer system user answer", [0, 3]),
        ("user user answer think answer user answer", [0, 5]),
        ("user call result answer user answer", [0, 4]),
        ("answer user answer", [0, 1]),
    ],
)
def test_turns(roles: str, starts: list[int]) -> None:
    parts = [Part(role, "", i) for i, role in enumerate(roles.split())]  # type: ignore[arg-type]
    assert turn_starts(parts) == starts
