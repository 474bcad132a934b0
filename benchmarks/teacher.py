"""What the pipeline costs a teacher: accepted output tokens per second, against the same engine given the same requests at once.

A real vLLM engine with a tiny model of random weights, on the CPU unless there is a GPU; both sides use the one engine, its
prefix cache emptied before every round, rounds interleaved. Ours is a whole run of ``align``: reading, prompts, answer
store, checking, plans, grids, commits; the clock runs from the first shard's reading to the last commit, the engine being
up. The other side is given the accepted requests of that run, all in one batch, and does nothing with the answers. Both
sides have one request answered before the rest, which then find the text that all share in the prefix cache.

A third run replays those answers through an engine that takes no time: what the pipeline could feed on one core, however
fast the engine.

Beside it, ``blind`` on the same conversations: the share of prompt tokens that came from the prefix cache.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

# One thread for the engine, one for the pipeline: vLLM's own threads wait for each other by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from common import HERE, median, parser, progress, records, report

sys.path.insert(0, str(HERE.parent / "tests" / "engines"))

from tiny_model import make_tiny_model

import jobs.teaching
from jobs.progress import Progress
from jobs.run import RunOptions, Summary, run
from pipeline.engines.build import build_engine
from pipeline.engines.protocol import Answer, Engine, Model, Request
from pipeline.engines.scripted import ScriptedEngine
from pipeline.engines.spec import parse_spec
from pipeline.grid.tokens import load_tokenizer
from pipeline.read.inputs import resolve_inputs
from pipeline.recipe import load_recipe
from pipeline.teach.answer_line import question


class Lent:
    """An engine that lives in the benchmark's loop, lent to a run, which may not end it. Keeps what was asked."""

    trouble = ""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop
        self.asked: list[tuple[Request, Answer]] = []

    async def start(self) -> Model:
        """It is up already."""
        return await self._there(self._engine.start())

    async def ask(self, request: Request) -> Answer:
        """Ask the engine, and note the question."""
        answer: Answer = await self._there(self._engine.ask(request))
        self.asked.append((request, answer))
        return answer

    async def close(self) -> None:
        """Not for the borrower."""

    async def _there(self, work: Any) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


def instant(model: Model, asked: list[tuple[Request, Answer]]) -> Engine:
    """An engine that knows every answer and takes no time over it."""
    answers = {question(model, request).key: answer for request, answer in asked}
    return ScriptedEngine(
        lambda request: answers[question(model, request).key], name=model.name, revision=model.revision
    )


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def convert(recipe: str, corpus: Path, out: Path, spec: Any, engine: Engine) -> tuple[Summary, float]:
    """One whole run, and its seconds from the first shard to the last commit."""
    shown = Progress()
    with mock.patch.object(jobs.teaching, "build_engine", lambda _: engine):
        summary = run(
            RunOptions(
                files=resolve_inputs([str(corpus)]),
                out=str(out),
                recipe=load_recipe(recipe, ["shard.records=256"]),
                tokenizer=load_tokenizer("builtin"),
                engine=spec,
                ray="off",
            ),
            shown,
        )
    return summary, shown.seconds


def accepted(asked: list[tuple[Request, Answer]], model: Model, plans: Path) -> tuple[list[Request], int]:
    """The requests whose answers were used, and the tokens of those answers."""
    used = {given["key"] for plan in read_plans(plans) for given in plan["teacher"]["answers"]}
    found = [(request, answer) for request, answer in asked if question(model, request).key in used]
    assert len(found) == len(used), "a used answer was not asked for here"
    return [request for request, _ in found], sum(answer.output_tokens for _, answer in found)


def read_plans(folder: Path) -> Iterator[dict[str, Any]]:
    """All plan lines of a dataset."""
    from pipeline.store.plans import unpack

    for path in sorted(folder.glob("*.zst")):
        for line in unpack(path.read_bytes()).splitlines():
            yield json.loads(line)


def main() -> None:
    """Measure both, report."""
    options = parser(__doc__)
    options.add_argument("--conversations", type=int, default=500)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--model", help="a model instead of the tiny one")
    options.add_argument("--concurrency", type=int, default=128)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch, running_loop() as loop:
        folder = Path(scratch)
        model = given.model or str(make_tiny_model(folder / "tiny", context=4096))
        corpus = folder / "chats.jsonl"
        corpus.write_bytes(b"\n".join(records(given.corpus, given.conversations)) + b"\n")
        spec = parse_spec("vllm", model, (), given.concurrency)
        assert spec is not None
        engine: Any = build_engine(replace(spec, concurrency=max(given.concurrency, given.conversations)))

        def there(work: Any) -> Any:
            future: Future[Any] = asyncio.run_coroutine_threadsafe(work, loop)
            return future.result()

        answering: Model = there(engine.start())
        ratios, ours, theirs, alone = [], [], [], []
        for number in range(given.rounds):
            there(engine.forget_prefixes())
            lent = Lent(engine, loop)
            summary, seconds = convert("align", corpus, folder / f"align-{number}", spec, lent)
            requests, tokens = accepted(lent.asked, answering, folder / f"align-{number}" / "plans")
            there(engine.forget_prefixes())

            async def batch(requests: list[Request] = requests) -> list[Answer]:
                return [await engine.ask(requests[0]), *await asyncio.gather(*map(engine.ask, requests[1:]))]

            started = time.perf_counter()
            answers = there(batch())
            bare_seconds = time.perf_counter() - started
            bare_tokens = sum(answer.output_tokens for answer in answers)
            _, seconds_alone = convert(
                "align", corpus, folder / f"alone-{number}", spec, instant(answering, lent.asked)
            )
            ours.append(tokens / seconds)
            alone.append(tokens / seconds_alone)
            theirs.append(bare_tokens / bare_seconds)
            ratios.append(ours[-1] / theirs[-1])
            progress(
                f"round {number + 1}: pipeline {ours[-1]:,.0f}, engine alone {theirs[-1]:,.0f} tokens/s, {ratios[-1]:.3f}"
            )
        there(engine.forget_prefixes())
        blind, _ = convert("blind", corpus, folder / "blind", spec, Lent(engine, loop))
        there(engine.close())
    assert blind.teacher is not None and summary.teacher is not None
    report(
        "teacher",
        {
            "corpus": given.corpus.name if given.corpus else "examples",
            "model": "tiny random Qwen3" if given.model is None else given.model,
            "conversations": given.conversations,
            "requests": len(requests),
            "concurrency": given.concurrency,
            "pipeline_tokens_per_s": round(median(ours)),
            "engine_tokens_per_s": round(median(theirs)),
            "pipeline_with_instant_engine_tokens_per_s": round(median(alone)),
            "ratio": round(median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "asked": 0.9,
            "align_cached_share": summary.teacher["cached_share"],
            "blind_cached_share": blind.teacher["cached_share"],
            "blind_cached_share_asked": 0.8,
            "blind_requests": blind.teacher["asked"],
            "blind_rejected": blind.teacher["rejected"],
            "align_rejected": summary.teacher["rejected"],
            "counts": msgspec.to_builtins(summary.manifest.counts)["converted"],
        },
        given.json,
    )


if __name__ == "__main__":
    main()
