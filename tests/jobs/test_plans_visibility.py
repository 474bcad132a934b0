"""``--plans`` with a layout that hides what a teacher had read: its records are rejected, and validation would find them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import zstandard
from running import pipeline
from stub_server import StubServer
from taught import answer, plan_lines, quarantine_lines, write_turns

_COUNT = 6

_STREAMS = """
streams:
  - {name: user, kind: input}
  - {name: think, kind: internal}
  - {name: output, kind: output}
roles: {system: user, user: user, think: think, answer: output, call: reject, result: reject}
"""

#: Neither thoughts nor answers read the user.
DEAF = f"name: deaf{_STREAMS}visibility: {{user: [], think: [output], output: []}}\n"
#: Thoughts do not read the answers, as ``chat-think-3`` lets them.
PRIVATE = f"name: private{_STREAMS}visibility: {{user: [], think: [user], output: [user, think]}}\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of two turns, and the datasets of two teachers."""
    folder = tmp_path_factory.mktemp("visibility")
    chats = write_turns(folder / "chats.jsonl", _COUNT, turns=2)
    with StubServer(answer) as server:
        for recipe in ("blind", "align"):
            ran = pipeline("convert", "--input", chats, "--recipe", recipe, "--engine", server.url,
                           "--out", folder / recipe, "--ray", "off")  # fmt: skip
            assert ran.code == 0, ran.output
    for name, text in (("deaf", DEAF), ("private", PRIVATE)):
        (folder / f"{name}.yaml").write_text(text)
    return folder


def _again(corpus: Path, planned: str, layout: str, out: Path) -> int:
    return pipeline("convert", "--input", corpus / "chats.jsonl", "--plans", corpus / planned, "--out", out,
                    "--ray", "off", "--set", f"layout={corpus / layout}.yaml").code  # fmt: skip


@pytest.mark.parametrize(
    ("planned", "layout", "said"),
    [
        ("blind", "deaf", "comes from a teacher who had read segment 0 in stream 'user'"),
        ("blind", "private", "'think', comes from a teacher who had read"),
        ("align", "deaf", "was paced by a teacher with"),
    ],
)
def test_what_rests_on_hidden_text_is_rejected(
    corpus: Path, tmp_path: Path, planned: str, layout: str, said: str
) -> None:
    """Of what is kept, no generated text waits for a stream that it may not read; and no thought had read one."""
    code = _again(corpus, planned, layout, tmp_path / "out")
    rejected = quarantine_lines(tmp_path / "out")
    assert rejected and code == (1 if len(rejected) == _COUNT else 0)
    for line in rejected:
        assert line["reason"] == "causality" and said in line["message"] and f"layout '{layout}'" in line["message"]
    kept = {plan["id"]: plan for plan in plan_lines(tmp_path / "out")}
    assert len(kept) + len(rejected) == _COUNT
    for plan in plan_lines(corpus / planned):
        thoughts = [n for n, segment in enumerate(plan["segments"]) if "text" in segment]
        answered = [n for n, segment in enumerate(plan["segments"]) if segment["stream"] == "output"]
        if planned == "blind":
            late = [n for n in thoughts if layout == "deaf" or n > answered[0]]
            assert (plan["id"] in kept) == (not late)
    assert pipeline("validate", tmp_path / "out", "--strict").code == 0


def test_pacing_stays_where_answers_read_the_user(corpus: Path, tmp_path: Path) -> None:
    assert _again(corpus, "align", "private", tmp_path / "out") == 0
    before = {plan["id"]: plan["segments"] for plan in plan_lines(corpus / "align")}
    assert {plan["id"]: plan["segments"] for plan in plan_lines(tmp_path / "out")} == before


def test_a_dataset_whose_thoughts_wait_for_hidden_text_is_found_out(corpus: Path, tmp_path: Path) -> None:
    """As the layout was ignored once: the plans of one that lets thoughts read the user, under one that does not."""
    assert _again(corpus, "align", "private", tmp_path / "out") == 0
    [path] = (tmp_path / "out/plans").glob("*.zst")
    lines = plan_lines(tmp_path / "out")
    answered = next(n for n, segment in enumerate(lines[0]["segments"]) if segment["stream"] == "output")
    lines[0]["segments"].append(
        {"stream": "think", "part": -1, "begin": 0, "end": 0, "text": "Hm.", "after": [[answered, None]]}
    )
    data = zstandard.compress(b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))
    path.write_bytes(data)
    document = json.loads((tmp_path / "out/dataset.json").read_text())
    document["shards"][0]["plans"].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (tmp_path / "out/dataset.json").write_text(json.dumps(document))
    ran = pipeline("validate", tmp_path / "out", "--json")
    assert ran.code == 1
    problems = {problem["code"]: problem for problem in json.loads(ran.output)["problems"]}
    [place] = problems["plan_evidence"]["places"]
    assert place["id"] == lines[0]["id"] and f"waits for segment {answered}, in stream 'output'" in place["found"]
