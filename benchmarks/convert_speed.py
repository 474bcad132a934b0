"""Tokens per second of ``convert`` on two workers, against two processes that only tokenise the same texts.

Both sides use the same content tokenizer, the same texts, the same number of texts per call and
``TOKENIZERS_PARALLELISM=false``, and count the tokens of the texts: the end marker that ``convert`` adds to every
conversation is no token that anybody tokenised. Rounds are interleaved; what is reported is the median of the rounds'
ratios. The layout is chat-2: GSM8K has no thoughts, so a lane for them would be silent from end to end.

Steady state: the clock of ``convert`` starts when the second shard is finished and stops with the last shard but one,
before the half-busy end; the tokens that were committed in between count. The first two shards are as a rule those that
the two workers began with, so Ray is up and the tokenizer's caches are warm; where one worker has done both, the start
of the other counts against us. The bare side is warmed up on its first tenth.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from common import median, parser, progress, records, report, texts_of

from jobs.progress import Progress
from jobs.run import RunOptions, run
from jobs.shard import Done
from pipeline.grid.tokens import CALL_TEXTS, load_tokenizer
from pipeline.read.inputs import resolve_inputs
from pipeline.recipe import load_recipe

WORKERS = 2


class Clock(Progress):
    """Notes when every shard was finished."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[tuple[float, int]] = []

    def finished(self, done: Done) -> None:
        """A shard has been converted."""
        ends = done.shard.counts.converted  # one end marker per conversation
        self.marks.append((time.perf_counter(), done.shard.tokens - ends))
        super().finished(done)

    def rate(self) -> float:
        """Tokens per second, without end markers, between the second shard that was finished and the last but one."""
        if len(self.marks) < WORKERS + 2:
            raise SystemExit(f"{len(self.marks)} shards are too few to time: give more --conversations")
        steady = self.marks[WORKERS - 1 : -1]
        return sum(tokens for _, tokens in steady[1:]) / (steady[-1][0] - steady[0][0])


def _tokenise(tokenizer: str, texts: Sequence[str], ready: object, results: object) -> None:
    content = load_tokenizer(tokenizer)._tokenizer
    encode = content.encode_batch_fast
    warm = len(texts) // 10

    def run(part: Sequence[str]) -> int:
        return sum(
            sum(map(len, encode(part[i : i + CALL_TEXTS], add_special_tokens=False)))
            for i in range(0, len(part), CALL_TEXTS)
        )

    run(texts[:warm])
    ready.wait()  # type: ignore[attr-defined]
    started = time.perf_counter()
    for i in range(0, len(texts), CALL_TEXTS):
        encode(texts[i : i + CALL_TEXTS], add_special_tokens=False)
    results.put((started, time.perf_counter()))  # type: ignore[attr-defined]


def bare(tokenizer: str, texts: Sequence[str], tokens: int) -> float:
    """Tokens per second of two processes that only tokenise. perf_counter is one clock for all processes on Linux."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(WORKERS), context.Queue()
    half = len(texts) // WORKERS
    shares = [texts[i * half : (i + 1) * half] for i in range(WORKERS)]
    processes = [context.Process(target=_tokenise, args=(tokenizer, share, ready, results)) for share in shares]
    for process in processes:
        process.start()
    spans = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return tokens / (max(end for _, end in spans) - min(start for start, _ in spans))


def ours(tokenizer: str, corpus: Path, settings: Sequence[str]) -> tuple[float, int]:
    """Tokens per second of ``convert`` in its steady state, and all tokens without end markers."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(
            files=resolve_inputs([str(corpus)]),
            out=f"{folder}/grids",
            recipe=load_recipe("wait-k", settings),
            tokenizer=load_tokenizer(tokenizer),
            workers=WORKERS,
            ray="local",
        )
        summary = run(options, clock)
    counts = summary.manifest.counts
    return clock.rate(), counts.tokens - counts.converted


def main() -> None:
    """Run the rounds and report."""
    options = parser(__doc__)
    options.add_argument("--conversations", type=int, default=100_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--unit", choices=["sentence", "token"], default="sentence")
    given = options.parse_args()
    lines = records(given.corpus, given.conversations)
    texts = texts_of(lines)
    settings = ["layout=chat-2", f"unit={given.unit}"]
    rates_ours, rates_bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        corpus.write_bytes(b"\n".join(lines) + b"\n")
        for number in range(given.rounds):
            rate, tokens = ours(given.tokenizer, corpus, settings)
            rates_ours.append(rate)
            rates_bare.append(bare(given.tokenizer, texts, tokens))
            progress(f"round {number + 1}: convert {rates_ours[-1]:,.0f}, tokenising {rates_bare[-1]:,.0f} tokens/s, "
                     f"ratio {rates_ours[-1] / rates_bare[-1]:.3f}")  # fmt: skip
    ratios = [a / b for a, b in zip(rates_ours, rates_bare, strict=True)]
    report(
        "convert_speed",
        {
            "conversations": given.conversations,
            "distinct_conversations": len(set(lines)),
            "tokens": tokens,
            "layout": "chat-2",
            "unit": given.unit,
            "workers": WORKERS,
            "convert_tokens_per_s": round(median(rates_ours)),
            "tokenise_tokens_per_s": round(median(rates_bare)),
            "ratio": round(median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "asked": 0.6,
        },
        given.json,
    )


if __name__ == "__main__":
    main()
