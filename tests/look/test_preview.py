"""A preview shows what a run would write, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

from running import pipeline

from pipeline.grid.tokens import load_tokenizer
from pipeline.look.preview import preview_lines, previews
from pipeline.read.inputs import resolve_inputs
from pipeline.recipe import load_recipe

CHATS = [
    {
        "messages": [
            {"role": "user", "content": "Hi. Who are you?"},
            {"role": "assistant", "content": "A test."},
        ]
    },
    {"messages": [{"role": "user", "content": "Nobody answers this."}]},
    {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Yes. One."}] * 3},
]


def _file(folder: Path) -> Path:
    path = folder / "in" / "a#b.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join([*map(json.dumps, CHATS), "{broken", json.dumps(CHATS[0])]) + "\n")
    return path


def test_every_record_is_accounted_for_in_order(tmp_path: Path) -> None:
    files = resolve_inputs([str(_file(tmp_path))])
    tokenizer = load_tokenizer("builtin")
    found = list(previews(files, load_recipe("wait-k"), tokenizer, 10))
    assert [one.id for one in found] == [f"a#b.jsonl:{number}" for number in range(5)]
    assert [len(one.grids) for one in found] == [1, 0, 1, 0, 1]
    assert [str(one.reason) if one.reason else None for one in found] == [
        None, "no_output", None, "invalid_json", None,
    ]  # fmt: skip
    assert not any(one.filtered for one in found)
    spans = found[0].grids[0].spans
    assert "".join(tokenizer.decode(s.tokens) for s in spans if s.stream == "user") == "Hi. Who are you?"


def test_the_limit_counts_records_over_all_files(tmp_path: Path) -> None:
    path = _file(tmp_path)
    (path.parent / "c.jsonl").write_text(path.read_text())
    files = resolve_inputs([str(path.parent)])
    found = list(previews(files, load_recipe("wait-k"), load_tokenizer("builtin"), 7))
    assert [one.id for one in found][4:] == ["a#b.jsonl:4", "c.jsonl:0", "c.jsonl:1"]


def test_windows_are_shown_one_by_one_and_filtered_records_named(tmp_path: Path) -> None:
    files = resolve_inputs([str(_file(tmp_path))])
    windows = load_recipe("wait-k", ["rows.max=12", "rows.long=window"])
    found = list(previews(files, windows, load_tokenizer("builtin"), 3))
    assert len(found[2].grids) > 1
    assert found[2].grids[1].id == "a#b.jsonl:2#1"


def test_it_shows_grids_and_reasons_and_writes_nothing(tmp_path: Path) -> None:
    path = _file(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = previews(resolve_inputs([str(path)]), load_recipe("wait-k"), load_tokenizer("builtin"), 4)
    lines = [line.plain for line in preview_lines(found, 80)]
    assert any(line.startswith("output") for line in lines)
    assert any(line.startswith("quarantine: invalid_json") for line in lines)
    assert sorted(tmp_path.rglob("*")) == before


def test_stored_plans_are_scheduled(tmp_path: Path) -> None:
    """What ``preview`` shows of plans is what ``convert`` makes of them; options of a run are taken, and ignored."""
    command = ["--input", _file(tmp_path), "--ray", "off"]
    made, again = tmp_path / "made", tmp_path / "again"
    assert pipeline("convert", *command, "--out", made, "--set", "k=full").code == 0
    command += ["--plans", made, "--fresh", "--workers", "1", "--out", again]
    shown = pipeline("preview", *command, "--no-pager").output
    assert not again.exists()
    assert pipeline("convert", *command).code == 0
    first = pipeline("show", again, "--no-pager").output
    assert first and shown.startswith(first)
    planned = pipeline("preview", *command[:2], "--no-pager").output
    assert not planned.startswith(first)
