"""Stored plans are read back line by line, each checked; a file that is cut off is never taken for a shorter one."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard

from pipeline.errors import UserError
from pipeline.plan.plan import Plan, Segment
from pipeline.store.place import Place
from pipeline.store.plans import read_plans

LINES = b'{"id":"a:0","segments":[{"stream":"user","part":0,"begin":0,"end":2}]}\n{"id":"a:1","segments":[]}\n'


def stored(folder: Path, data: bytes) -> tuple[Place, str]:
    place = Place(str(folder))
    place.put("plans/part-00000.jsonl.zst", data)
    return place, "plans/part-00000.jsonl.zst"


def test_plans_come_back_from_one_frame_or_many(tmp_path: Path) -> None:
    expected = [Plan("a:0", [Segment("user", 0, 0, 2)]), Plan("a:1", [])]
    assert list(read_plans(*stored(tmp_path, zstandard.compress(LINES)))) == expected
    half = LINES.index(b"\n") + 1
    frames = zstandard.compress(LINES[:half]) + zstandard.compress(LINES[half:])
    assert list(read_plans(*stored(tmp_path, frames))) == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zstandard.compress(LINES)[:-5], "not readable: the end is missing"),
        (b"plain", "not readable"),
        (zstandard.compress(b"{\n"), "line 1: no JSON"),
        (zstandard.compress(b'{"id": "\xff"}\n'), "line 1: no JSON"),
        (zstandard.compress(b"[" * 100_000 + b"\n"), "line 1: no JSON"),
        (zstandard.compress(LINES[:-1]), "line 2: no line break"),
        (zstandard.compress(b'{"id": "a:0"}\n'), "line 1: .*segments"),
    ],
    ids=["cut off", "no zstd", "no JSON", "no UTF-8", "too deep", "last line cut off", "no plan"],
)
def test_what_is_wrong_is_said_with_the_file(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"part-00000.jsonl.zst: {said}"):
        list(read_plans(*stored(tmp_path, data)))


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        list(read_plans(Place(str(tmp_path)), "plans/part-00000.jsonl.zst"))
