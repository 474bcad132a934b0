"""Real corpora, where they are present: every record is read, and nothing in it is changed."""

import json
from pathlib import Path

import pytest

from pipeline.read.conversation import Conversation
from pipeline.read.cut import cuts, records
from pipeline.read.inputs import resolve_inputs
from pipeline.read.options import ReadOptions
from pipeline.read.parse import read_conversation
from pipeline.read.scan import scan

CORPORA = Path(__file__).parents[3] / "shared" / "corpora"


def load(name: str, options: ReadOptions) -> tuple[Path, list[Conversation]]:
    path = CORPORA / name
    if not path.exists():
        pytest.skip(f"no {name} here: shared/corpora is not part of the repository")
    (file,) = resolve_inputs([str(path)])
    return path, [
        read_conversation(record.raw, cut.format, options.messages_field)
        for cut in cuts(file, scan(file, options), options)
        for record in records(cut, options)
        if record.raw is not None
    ]


def test_gsm8k() -> None:
    path, read = load("gsm8k-train-5000.jsonl", ReadOptions(shard_records=999))
    recorded = [json.loads(line) for line in path.read_text().splitlines()]
    assert [[(p.role, p.text) for p in c.parts] for c in read] == [
        [("user", row["question"]), ("answer", row["answer"])] for row in recorded
    ]


def test_sharegpt() -> None:
    path, read = load("sharegpt-fastchat-dummy.json", ReadOptions(shard_records=64))
    roles = {"human": "user", "gpt": "answer"}
    assert [(c.meta, [(p.role, p.text) for p in c.parts]) for c in read] == [
        ({"id": row["id"]}, [(roles[m["from"]], m["value"]) for m in row["conversations"]])
        for row in json.loads(path.read_text())
    ]


def test_tau_bench() -> None:
    path, read = load("tau-bench-airline-100.json", ReadOptions(messages_field="traj"))
    recorded = json.loads(path.read_text())
    assert len(read) == len(recorded)
    for conversation, row in zip(read, recorded, strict=True):
        assert conversation.meta == {name: value for name, value in row.items() if name != "traj"}
        texts = [p.text for p in conversation.parts if p.role != "call"]
        assert texts == [m["content"] for m in row["traj"] if m["content"] or m["role"] == "tool"]
        calls = [call for m in row["traj"] for call in m.get("tool_calls") or ()]
        asked = [json.loads(p.text) for p in conversation.parts if p.role == "call"]
        assert asked == [{"name": c["function"]["name"], "arguments": c["function"]["arguments"]} for c in calls]
        for part in conversation.parts:
            if part.role == "result":
                call = conversation.parts[part.reply_to]
                assert call.role == "call" and call.tool == row["traj"][part.message]["name"]
