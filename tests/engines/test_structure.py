"""Structural validity, with a real engine: a model that knows nothing cannot write anything that is no plan.

Weights are random, so every good token is the constraint's doing: each answer must parse the first time, and every plan
must give a grid that validates.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest
from running import ROOT, assert_same, contents, finish, pipeline, spawned, start
from samples import chat, raw

from pipeline import open_dataset
from pipeline.recipe import load_recipe
from pipeline.teach.shard import teaching_planner

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
    # what the probe makes sure there is room for
    longest = teaching_planner(load_recipe(recipe, settings[1::2])).longest
    assert all(0 < most <= longest for most in _most_tokens(tmp_path / "grids.answers"))
    checked = pipeline("validate", out, "--strict")
    assert checked.code == 0, checked.output


def _most_tokens(answers: Path) -> list[int]:
    lines = [line for file in answers.glob("*.jsonl") for line in file.read_bytes().splitlines()]
    asked = [entry["request"] for line in lines if "request" in (entry := json.loads(line))]
    assert asked
    return [request["sampling"]["max_tokens"] for request in asked]


def test_an_engine_killed_while_it_is_asked(tiny_model: Path, tmp_path: Path) -> None:
    """The run replaces the engine and goes on, and a replay of its answers, without any engine, gives the same bytes."""
    corpus = tmp_path / "chats.jsonl"
    corpus.write_bytes(b"\n".join(raw(chat(f"What is {n} and {n}?", f"It is {2 * n}. So.")) for n in range(40)))
    answers = tmp_path / "answers"
    options = ["convert", "--input", corpus, "--recipe", "align", "--engine", "vllm", "--model", tiny_model, "--ray", "off",
               "--engine-arg", "gpu_memory_utilization=0.3", "--concurrency", "4", "--answers", answers]  # fmt: skip
    run = start([*options, "--out", tmp_path / "killed"], {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
    try:
        until = time.monotonic() + 120
        while sum(file.read_bytes().count(b"\n") for file in answers.glob("*.jsonl")) < 4:
            assert run.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        [engine] = [child for child in psutil.Process(run.pid).children() if "EngineCore" in " ".join(child.cmdline())]
        engine.kill()
        ran = finish(run)
    finally:
        run.kill()
    assert ran.code == 0, ran.output
    about = json.loads((tmp_path / "killed" / "run.json").read_text())["teacher"]
    assert (about["engine_restarts"], about["accepted"]) == (1, 40), ran.output
    again = pipeline(*options, "--out", tmp_path / "again")
    assert again.code == 0, again.output
    assert json.loads((tmp_path / "again" / "run.json").read_text())["teacher"]["asked"] == 0
    assert_same(tmp_path / "again", contents(tmp_path / "killed"))


@pytest.mark.ray
def test_an_engine_in_a_ray_actor(tiny_model: Path, tmp_path: Path) -> None:
    """The whole path once more with the engine where it belongs; the bytes are those of a replay without any engine."""
    lines = [chat(f"What is {n} and {n}? Say it slowly.", f"It is {2 * n}. That was slow.") for n in range(20)]
    corpus = tmp_path / "chats.jsonl"
    corpus.write_bytes(b"\n".join(map(raw, lines)))
    options = ["convert", "--input", corpus, "--recipe", "align", "--engine", "vllm", "--model", tiny_model,
               "--engine-arg", "gpu_memory_utilization=0.3", "--answers", tmp_path / "answers"]  # fmt: skip
    ran = spawned(*options, "--out", tmp_path / "ray", "--ray", "local", "--workers", "1")
    assert ran.code == 0, ran.output
    again = spawned(*options, "--out", tmp_path / "again", "--ray", "off")
    assert again.code == 0, again.output
    about = json.loads((tmp_path / "again" / "run.json").read_text())["teacher"]
    assert (about["asked"], about["from_store"]) == (0, 20)
    for name in ("dataset.json", "data/part-00000.parquet", "plans/part-00000.jsonl.zst"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
