"""The schedule is the earliest one that satisfies the plan, against a search through all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.grid.schedule import schedule
from pipeline.plan.plan import Segment

WRITTEN = {"user": False, "tool": False, "think": True, "out": True}


@st.composite
def plans(draw: st.DrawFn, most: int = 4) -> tuple[list[Segment], list[int]]:
    segments: list[Segment] = []
    lengths: list[int] = []
    for number in range(draw(st.integers(1, most))):
        tokens = st.one_of(st.none(), st.integers(0, 4))
        edge = st.tuples(st.integers(0, number - 1), tokens) if number else st.nothing()
        segments.append(
            Segment(
                draw(st.sampled_from(sorted(WRITTEN))),
                0,
                0,
                0,
                None,
                tuple(draw(st.lists(edge, max_size=2 if number else 0))),
                draw(st.sampled_from([0, 0, 0, 1, 2])),
                draw(st.sampled_from([0, 0, 0, 1, 3])),
            )
        )
        lengths.append(draw(st.integers(0, 3)))
    return segments, lengths


def satisfies(starts: Sequence[int], segments: Sequence[Segment], lengths: Sequence[int]) -> bool:
    """Whether rows keep a plan, token by token, without a formula of the scheduler.

    What a stream of the model says at row r was produced knowing its own stream up to row r - 1 and the others up to
    row r - 2; what the world says may follow at once.
    """
    for s, segment in enumerate(segments):
        if starts[s] < segment.earliest:
            return False
        earlier = [o for o in range(s) if segments[o].stream == segment.stream]
        if earlier and starts[s] < starts[earlier[-1]] + lengths[earlier[-1]]:
            return False
        for d, n in segment.after:
            count = lengths[d] if n is None else min(n, lengths[d])
            last_row = starts[d] + count - 1  # the row of the last token that must have been said
            other = segments[d].stream != segment.stream
            knows_up_to = starts[s] - (2 if WRITTEN[segment.stream] and other else 1)
            if knows_up_to - segment.lag < last_row:
                return False
    return True


@given(plans())
@settings(max_examples=400)
def test_it_is_the_only_one_that_is_not_later_anywhere(case: tuple[list[Segment], list[int]]) -> None:
    """Constraints only bound starts from below, so if the schedule keeps the plan and no other start vector that is
    nowhere later does, it is the unique earliest one."""
    segments, lengths = case
    found = schedule(segments, lengths, WRITTEN)
    ranges = [range(start + 1) for start in found]
    assume(len(list(itertools.islice(itertools.product(*ranges), 30_001))) <= 30_000)
    assert [list(v) for v in itertools.product(*ranges) if satisfies(v, segments, lengths)] == [found]


@given(plans(most=40))
@settings(max_examples=100)
def test_long_plans_are_kept_and_nothing_can_start_one_row_earlier(case: tuple[list[Segment], list[int]]) -> None:
    segments, lengths = case
    found = schedule(segments, lengths, WRITTEN)
    assert satisfies(found, segments, lengths)
    for s, start in enumerate(found):
        if start:
            assert not satisfies([*found[:s], start - 1], segments[: s + 1], lengths[: s + 1])


@given(plans(most=12))
@settings(max_examples=100)
def test_segments_of_a_stream_never_overlap(case: tuple[list[Segment], list[int]]) -> None:
    segments, lengths = case
    cells: set[tuple[str, int]] = set()
    for segment, start, length in zip(segments, schedule(segments, lengths, WRITTEN), lengths, strict=True):
        own = {(segment.stream, row) for row in range(start, start + length)}
        assert not own & cells
        cells |= own


@pytest.mark.parametrize(
    ("reader", "n", "start"),
    [
        ("out", None, 4),  # three tokens on rows 0-2: known from row 4 on
        ("out", 1, 2),  # what is read at row 0 can first change what is said at row 2
        ("out", 0, 1),
        ("out", 9, 4),  # more tokens than there are: all
        ("tool", None, 3),  # the world does not wait for the model to read
        ("tool", 1, 1),
    ],
)
def test_the_horizon(reader: str, n: int | None, start: int) -> None:
    segments = [Segment("user", 0, 0, 0), Segment(reader, 1, 0, 0, None, ((0, n),))]
    assert schedule(segments, [3, 1], WRITTEN) == [0, start]


def test_within_one_stream_there_is_no_horizon() -> None:
    segments = [Segment("out", 0, 0, 0), Segment("out", 1, 0, 0, None, ((0, None),))]
    assert schedule(segments, [3, 1], WRITTEN) == [0, 3]


def test_order_passes_through_an_empty_segment() -> None:
    segments = [
        Segment("user", 0, 0, 0),
        Segment("think", 1, 0, 0, None, ((0, None),)),
        Segment("out", 2, 0, 0, None, ((1, None),)),
    ]
    assert schedule(segments, [3, 0, 1], WRITTEN) == [0, 4, 5]


@pytest.mark.parametrize("d", [0, 1, -1])
def test_a_dependency_that_is_not_before_its_segment_is_rejected(d: int) -> None:
    with pytest.raises(Rejected, match="plan_invalid"):
        schedule([Segment("out", 0, 0, 0, None, ((d, None),))], [1], WRITTEN)
