"""Structural validity, with a real engine: a model that knows nothing cannot write anything that is no plan.

Weights are random, so every good token is the constraint's doing: each answer must parse the first time, and every plan
must give a grid that validates.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import ROOT, pipeline, spawned
from samples import chat, raw

from pipeline import open_dataset

CORPUS = ROOT / "examples" / "corpus"
#: What the layout of each recipe has a stream for.
INPUTS = {"align": "reasoning.jsonl.zst", "blind": "reasoning.jsonl.zst", "audit": "chat.json", "table": "chat.json"}


@pytest.mark.parametrize("recipe", INPUTS)
def test_random_weights_give_plans_that_parse_and_grids_that_validate(
    recipe: str, vllm_server: str, tmp_path: Path
) -> None:
    out = tmp_path / "grids"
    # Random tables are as long as they may be: short ones prove the same.
    settings = ["--set", "rows=4", "--set", "characters=12"] if recipe == "table" else []
    limit = ["--limit", "12"] if recipe in ("audit", "table", "blind") else []
    ran = pipeline("convert", "--input", CORPUS / INPUTS[recipe], "--out", out, "--recipe", recipe, "--ray", "off",
                   "--engine", vllm_server, *settings, *limit)  # fmt: skip
    assert ran.code == 0, ran.output
    counts = open_dataset(str(out)).manifest.counts
    teacher = json.loads((out / "run.json").read_text())["teacher"]
    assert counts.converted > 10
    assert counts.quarantine_reasons.keys() <= {"no_stream_for_role"}, counts.quarantine_reasons
    assert (teacher["retried"], teacher["rejected"]) == (0, 0), ran.output
    assert teacher["accepted"] >= counts.converted
    checked = pipeline("validate", out, "--strict")
    assert checked.code == 0, checked.output


@pytest.mark.ray
def test_an_engine_in_a_ray_actor(tiny_model: Path, tmp_path: Path) -> None:
    """The whole path once more with the engine where it belongs; the bytes are those of a replay without any engine."""
    lines = [chat(f"What is {n} and {n}? Say it slowly.", f"It is {2 * n}. That was slow.") for n in range(20)]
    corpus = tmp_path / "chats.jsonl"
    corpus.write_bytes(b"\n".join(map(raw, lines)))
    options = ["convert", "--input", corpus, "--recipe", "align", "--engine", "vllm", "--model", tiny_model,
               "--answers", tmp_path / "answers"]  # fmt: skip
    ran = spawned(*options, "--out", tmp_path / "ray", "--ray", "local", "--workers", "1")
    assert ran.code == 0, ran.output
    again = spawned(*options, "--out", tmp_path / "again", "--ray", "off")
    assert again.code == 0, again.output
    about = json.loads((tmp_path / "again" / "run.json").read_text())["teacher"]
    assert (about["asked"], about["from_store"]) == (0, 20)
    for name in ("dataset.json", "data/part-00000.parquet", "plans/part-00000.jsonl.zst"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
