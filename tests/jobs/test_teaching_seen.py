"""What people see of a teacher: progress, errors before any work, prompts, and a preview."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.core.generated.autoscaler_pb2 import ClusterConfig  # type: ignore[attr-defined]  # made as it is imported
from rich.cells import cell_len
from rich.console import Console
from running import free_port, pipeline
from stub_server import Body, Fault, StubServer
from taught import answer, write_injections, write_turns, wrong

from jobs import progress
from jobs.pool import Nodes, Room, _default_workers, _room, _too_small
from jobs.progress import Progress
from jobs.teaching import Taught
from pipeline.engines.spec import EngineSpec, parse_spec
from pipeline.errors import Reason, Rejected
from pipeline.plan.plan import Segment
from pipeline.read.conversation import Part
from pipeline.store.counts import Counts
from pipeline.teach.counters import Counters
from pipeline.teach.planners import align
from pipeline.teach.protocol import Ask


@pytest.fixture(scope="module")
def server() -> Iterator[StubServer]:
    with StubServer(answer) as made:
        yield made


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_turns(tmp_path / "chats.jsonl", 4)


# Progress


def _large(now: Progress) -> None:
    """As large a number as any run has at a time, in every place."""
    now.begin_convert(10**9, "16 workers, Ray cluster of 4 nodes", 16 * 128)
    now.counts = Counts(quarantined=12_340)
    now._began -= 3600
    counters = Counters(
        asked=1_234_567, stored=7, accepted=1_234_567, rejected=12_345, retried=123_456, in_flight=4096,
        prompt_tokens=9_999_999_999, cached_tokens=8_888_888_888, output_tokens=777_777_777, restarts=12,
        flight_seconds=55_000 * 128, busy_seconds=3600,
    )  # fmt: skip
    now.taught(Taught("one", counters, 5e8))


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_shows_all_facts(columns: int) -> None:
    """At 80 columns too: no line is longer, and no fact is cut."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=columns, height=24, color_system=None)
    with Progress(console) as now:
        _large(now)
        bar = now._bar
        assert bar is not None
        bar.refresh()
        shown = Console(width=columns, file=io.StringIO())
        for line in bar.get_renderables():
            shown.print(line)
        assert isinstance(shown.file, io.StringIO)
        lines = shown.file.getvalue().splitlines()
    assert len([line for line in lines if line.strip()]) == (4 if columns == 80 else 2), lines
    assert all(cell_len(line) <= columns for line in lines)
    whole = "\n".join(lines)
    for fact in ("50%", "1,234,567 accepted", "123,456 retried", "12,345 rejected", "12,340 quarantined",
                 "2.78 M prompt (2.47 M cached), 216 k output", "4096 in flight", "occupancy 95%", "lost 12 times"):  # fmt: skip
        assert fact in whole, fact


def test_a_log_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_FIRST", -7200.0)
    log = io.StringIO()
    with Progress(Console(file=log, width=80)) as now:
        _large(now)
    assert log.getvalue().splitlines()[-1] == (
        "converting: 50%, 1,234,567 accepted · 123,456 retried · 12,345 rejected · 12,340 quarantined · "
        "tokens/s: 2.78 M prompt (2.47 M cached), 216 k output · "
        "engine: 4096 in flight · occupancy 95% · lost 12 times, ETA 1:00:00"
    )


def test_a_run_says_how_it_goes(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its only shard is done, a log has the counts of answers so far."""
    monkeypatch.setattr(progress, "_FIRST", 0.0)
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    monkeypatch.setattr("jobs.executor.LOOK_EVERY", 0.1)

    def faults(_body: Body, _seen: int) -> Fault:
        return Fault("slow", seconds=0.1)

    with StubServer(wrong(0.5), faults) as slow:
        ran = pipeline("convert", "--input", corpus, "--recipe", "blind", "--engine", slow.url,
                       "--concurrency", "2", "--out", tmp_path / "out", "--ray", "off")  # fmt: skip
    assert ran.code == 0, ran.output
    lines = [line for line in ran.output.splitlines() if line.startswith("converting: ")]
    accepted = [int(found[1]) for line in lines if (found := re.search(r"(\d+) accepted", line))]
    assert len(set(accepted)) > 2 and accepted == sorted(accepted)
    assert any(
        re.search(r" [1-9]\d* retried · \d+ rejected · 0 quarantined · tokens/s: .* · engine: [12] in flight · ", line)
        for line in lines
    )


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "align"], "--recipe align: the planner align asks a model. Add --engine vllm"),
        (["--engine", "{url}"], "--engine: the planner wait-k asks no model; leave it out"),
        (["--answers", "{tmp}/a"], "--answers: the planner wait-k asks no model"),
        (["--recipe", "align", "--engine", "openai"], "--engine openai: no such engine; use none, vllm"),
        (["--recipe", "align", "--engine", "http://127.0.0.1:{port}/v1"], "--engine: no server answers"),
        (["--recipe", "align", "--engine", "{url}", "--model", "gpt-x"], "--model gpt-x: {url} does not have it"),
        (
            ["--recipe", "align", "--engine", "{url}", "--answers", "s3://b/a"],
            "--answers s3://b/a: must be a directory",
        ),
        (["--recipe", "align", "--engine", "{url}", "--answers", "{tmp}/chats.jsonl"], "is not a directory"),
        (["--recipe", "align", "--engine", "{url}", "--answers", "{tmp}/chats.jsonl/a"], "is not a directory"),
        (["--recipe", "align", "--engine", "scripted:{tmp}/none"], "none: cannot be read (No such file or directory)"),
        (["--recipe", "align", "--engine", "vllm"], "--engine vllm: which model? Add --model"),
        (["--recipe", "blind", "--engine", "{url}", "--set", "layout=chat-2"], "has no stream for thoughts"),
        (["--recipe", "align", "--engine", "{url}", "--set", "prompt={tmp}"], "holds no template (NAME.jinja)"),
        (["--recipe", "align", "--engine", "{url}", "--set", "teacher.attempts=0"], "teacher.attempts: 0 is less than"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(
    options: list[str], message: str, corpus: Path, server: StubServer, tmp_path: Path
) -> None:
    """In one sentence; nothing is read, asked or left behind."""
    names = {"url": server.url, "tmp": str(tmp_path), "port": str(free_port())}
    asked = len(server.bodies)
    given = [option.format(**names) for option in options]
    ran = pipeline("convert", "--input", corpus, "--out", tmp_path / "out", "--ray", "off", *given)
    assert ran.code == 2 and message.format(**names) in ran.output, ran.output
    assert ran.output.startswith("Error: ") and ran.output.count("\n") == 1
    assert len(server.bodies) == asked
    assert [path.name for path in tmp_path.iterdir()] == ["chats.jsonl"]


def test_a_server_whose_constraints_do_not_bind(corpus: Path, tmp_path: Path) -> None:
    """Is found out with the first requests, and no answer of its is kept."""
    with StubServer(lambda _body: "Sure! Here is the JSON.") as loose:
        ran = pipeline(
            "convert", "--input", corpus, "--recipe", "align", "--engine", loose.url, "--out", tmp_path / "out"
        )
        looked = pipeline("preview", "--recipe", "align", "--input", corpus, "--engine", loose.url)
    assert ran.code == 2 and "does not keep to a constraint (json)" in ran.output, ran.output
    assert "Traceback" not in ran.output and not list((tmp_path / "out.answers").glob("*.jsonl"))
    assert looked.code == 2 and looked.output == ran.output[ran.output.index("Error: ") :]


def test_a_cluster_with_too_few_gpus_is_refused() -> None:
    """Before a worker waits for ever: what is missing, and what would do."""
    engine = parse_spec("vllm", "m", ["tensor_parallel_size=4", "pipeline_parallel_size=2"])
    assert engine is not None and engine.gpus == 8
    two = Room((Nodes(2, 32, 8),))
    assert _too_small(2, two, 8) is None
    assert _too_small(3, two, 8) == (
        "--workers 3: each engine takes 8 GPUs of one node (tensor_parallel_size × pipeline_parallel_size), and the Ray "
        "cluster has room for 2 (all in all 16 GPUs). Use --workers 2, or add nodes with 8 GPUs or more"
    )
    assert _default_workers(engine, two, 8) == 2
    assert _default_workers(engine, Room((Nodes(1, 64, 0),)), 0) == 1  # CPUs: one engine takes them all
    assert _default_workers(EngineSpec("http", ("http://h/v1",)), Room((Nodes(1, 64, 0),)), 0) == 4
    assert _too_small(1, Room(()), 0) is not None


def test_an_engine_needs_its_gpus_on_one_node() -> None:
    """And a CPU there. GPUs that are left over on several nodes make no engine."""
    engine = parse_spec("vllm", "m", ["tensor_parallel_size=3"])
    halves = Room((Nodes(1, 16, 4), Nodes(1, 16, 4)))
    assert _too_small(1, halves, 8) == (
        "--workers 1: each engine takes 8 GPUs of one node (tensor_parallel_size × pipeline_parallel_size), and the Ray "
        "cluster has no node with more than 4 (all in all 8 GPUs). Use smaller tensor_parallel_size, or add nodes with 8 "
        "GPUs or more"
    )
    assert _default_workers(engine, halves, 8) == 1  # which is refused, as above
    assert _default_workers(engine, Room((Nodes(3, 16, 4),)), 3) == 3
    assert _default_workers(engine, Room((Nodes(1, 64, 0), Nodes(2, 1, 8))), 1) == 2
    refused = _too_small(1, Room((Nodes(1, 64, 0), Nodes(1, 0, 8))), 8)
    assert refused is not None and "has no node with so many and a CPU for the worker" in refused


def test_the_room_of_a_cluster_counts_what_an_autoscaler_would_add(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}}
    head, worker = ({"Alive": True, "Resources": found} for found in ({"CPU": 2.0}, {"CPU": 8.0, "GPU": 4.0}))
    monkeypatch.setattr("jobs.pool.ray.nodes", lambda: [dead, head, worker])
    config = ClusterConfig()
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: config)
    assert _room() == Room((Nodes(1, 2, 0), Nodes(1, 8, 4)))
    assert _default_workers(None, Room((Nodes(1 << 20, 16, 0),)), 0) == 1024  # a cluster may grow without end
    config.node_group_configs.add(resources={"CPU": 16, "GPU": 4}, max_count=3)
    config.node_group_configs.add(resources={"CPU": 16}, max_count=-1)
    room = _room()
    assert room.nodes[0] == Nodes(3, 16, 4) and room.nodes[1].number > 1000
    assert (room.engines(4), room.engines(8)) == (3, 0)


# Prompts and previews


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("recipe", ["align", "blind", "audit", "table"])
def test_prompts_and_previews_fit(recipe: str, columns: int, server: StubServer, tmp_path: Path) -> None:
    corpus = write_injections(tmp_path / "chats.jsonl")
    asked = len(server.bodies)
    shown = pipeline("prompt", recipe, "--input", corpus, "--limit", "3", columns=columns)
    assert shown.code == 0 and len(server.bodies) == asked
    seen = pipeline("preview", "--recipe", recipe, "--input", corpus, "--engine", server.url, columns=columns)
    assert seen.code == 0, seen.output
    assert sorted(tmp_path.iterdir()) == [corpus]  # nothing is written
    for output in (shown.output, seen.output):
        assert "chats.jsonl:2" in output and "chats.jsonl:3" not in output
        assert "\x1b[2J" not in output and "\x00" not in output and "\u202e" not in output  # a terminal stays as it is
        plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in output.splitlines()]
        assert [line for line in plain if cell_len(line) > columns] == []
    assert "── call 1 of " in shown.output and "\nanswer\n" not in shown.output
    if columns == 80:
        assert "\nanswer\n" in seen.output
    else:
        assert re.search(r"system +│ answer", seen.output)
    assert (
        seen.output.count("── plan ")
        == 3
        == len(re.findall(r"^[\d,]+ rows · [\d,]+ tokens", seen.output, re.MULTILINE))
    )


def test_prompts_for_machines(corpus: Path, server: StubServer, tmp_path: Path) -> None:
    """One JSON object per call: exactly what a run sends."""
    shown = pipeline("prompt", "align", "--input", corpus, "--limit", "4", "--json")
    calls = [json.loads(line) for line in shown.output.splitlines()]
    assert [call["id"] for call in calls] == [f"chats.jsonl:{number}" for number in range(4)]
    with StubServer(answer) as fresh:
        ran = pipeline("convert", "--input", corpus, "--recipe", "align", "--engine", fresh.url,
                       "--out", tmp_path / "out", "--ray", "off")  # fmt: skip
        assert ran.code == 0, ran.output
        sent = [
            {"messages": body["messages"], "max_tokens": body["max_tokens"], **body["structured_outputs"]}
            for body in fresh.bodies
            if "You judge" in body["messages"][0]["content"]
        ]
    for call in calls:
        constraint = {call["constraint"]["kind"]: call["constraint"]["value"]}
        assert {"messages": call["messages"], "max_tokens": call["max_tokens"], **constraint} in sent


def test_a_preview_shows_why_a_teacher_failed(corpus: Path) -> None:
    with StubServer(lambda body: answer(body) if "short sentence" in str(body) else "I would rather not.") as unwilling:
        ran = pipeline("preview", "--recipe", "align", "--input", corpus, "--engine", unwilling.url, columns=80)
    assert ran.code == 0
    assert ran.output.count("I would rather not.") == 3 * 4, ran.output
    assert ran.output.count("quarantine: teacher_invalid: none of 4 answers was valid") == 3


def test_prompts_of_a_record_that_is_given_up(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said why, and the next one is shown."""
    plan = align.Planner.__call__

    async def give_up(self: align.Planner, parts: list[Part], ask: Ask) -> list[Segment]:
        if " 1 boxes" in parts[0].text:
            raise Rejected(Reason.TOO_LONG, "too many segments")
        return await plan(self, parts, ask)

    monkeypatch.setattr(align.Planner, "__call__", give_up)
    shown = pipeline("prompt", "align", "--input", corpus, "--limit", "3")
    assert shown.code == 0 and "quarantine: too_long: too many segments" in shown.output, shown.output
    assert shown.output.count("── call 1 of ") == 2 and "chats.jsonl:2" in shown.output
    lines = pipeline("prompt", "align", "--input", corpus, "--limit", "3", "--json").output.splitlines()
    assert json.loads(lines[1]) == {"id": "chats.jsonl:1", "reason": "too_long", "message": "too many segments"}


def test_prompts_of_a_rule(corpus: Path) -> None:
    ran = pipeline("prompt", "wait-k", "--input", corpus)
    assert ran.code == 2 and "the planner wait-k asks no model, so there is no prompt" in ran.output
