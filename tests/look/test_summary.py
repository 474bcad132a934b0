"""The end of a run fits on a screen, whatever has gone wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from running import pipeline

_USER = {"role": "user", "content": "Why?"}


def _record(*messages: dict[str, Any]) -> bytes:
    return json.dumps({"messages": [_USER, *messages]}).encode()


def test_many_reasons_fit_on_a_screen(tmp_path: Path) -> None:
    bad = [
        b"{",
        b'{"messages": []}',
        b'{"a": "\xff"}',
        b'{"n": 1}',
        b"[" * 300 + b"]" * 300,
        _record(),
        _record({"role": "narrator", "content": "x"}),
        _record({"role": "assistant", "content": [{"type": "image"}]}),
        _record({"role": "tool", "content": "x"}),
    ]
    lines = [_record({"role": "assistant", "content": "Because."})] + bad + bad[:3] * 5
    (tmp_path / "chats.jsonl").write_bytes(b"\n".join(lines))
    ran = pipeline(
        "convert", "--input", tmp_path / "chats.jsonl", "--out", tmp_path / "out", "--ray", "off", columns=80
    )
    assert ran.code == 0, ran.output
    reasons = json.loads((tmp_path / "out/dataset.json").read_text())["quarantine_reasons"]
    assert len(reasons) >= 7
    shown = ran.output.splitlines()
    assert len(shown) <= 24 and all(len(line) <= 80 for line in shown)
    for reason, count in reasons.items():
        assert f"{count} {reason}" in " ".join(ran.output.split()), reason
