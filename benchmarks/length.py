"""Cost per token of converting one conversation, from 100 to 100,000 tokens: it has to be flat.

The same amount of text is cut into conversations of every length, so that each measurement converts about as many
tokens. Bare tokenising of the same texts stands beside it: what grows there, grows here.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from common import median, parser, progress, records, report, texts_of

LENGTHS = (100, 1_000, 10_000, 100_000)


def conversations(texts: list[str], words: int, total_words: int) -> list[bytes]:
    """Question/answer records of about ``words`` words, ``total_words`` in all."""
    pool = " ".join(texts).split(" ")
    while len(pool) < total_words:
        pool += pool
    half = words // 2
    return [
        json.dumps({"question": " ".join(pool[i : i + half]), "answer": " ".join(pool[i + half : i + words])}).encode()
        for i in range(0, total_words - words + 1, words)
    ]


def main() -> None:
    """Measure every length in turn, several rounds, and report."""
    from pipeline.convert import ShardConverter
    from pipeline.grid.ids import token_ids
    from pipeline.grid.tokens import CALL_TEXTS, load_tokenizer
    from pipeline.read.containers import Record
    from pipeline.recipe import load_recipe

    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=600_000, help="tokens per measurement, about")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    recipe = load_recipe("wait-k", ["layout=chat-2"])
    tokenizer = load_tokenizer(given.tokenizer)
    converter = ShardConverter(recipe, tokenizer, token_ids(recipe.layout, tokenizer))
    texts = texts_of(records(given.corpus, 5_000))
    tokens_per_word = len(tokenizer.encode(texts[:1000])[0]) / len(" ".join(texts[:1000]).split(" "))

    work: dict[int, tuple[list[Record], list[str]]] = {}
    for length in LENGTHS:
        lines = conversations(texts, round(length / tokens_per_word), round(given.tokens / tokens_per_word))
        work[length] = ([Record(i, line, 0, len(line)) for i, line in enumerate(lines)], texts_of(lines))
    cost: dict[int, list[float]] = {length: [] for length in LENGTHS}
    bare: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for number in range(given.rounds + 1):
        for length, (lines, own) in work.items():
            started = time.perf_counter()
            tokens = converter.convert("x", "prompt-completion", lines).counts.tokens
            middle = time.perf_counter()
            for i in range(0, len(own), CALL_TEXTS):
                tokenizer._tokenizer.encode_batch_fast(own[i : i + CALL_TEXTS], add_special_tokens=False)
            if number:  # the first round warms up
                cost[length].append((middle - started) / tokens * 1e9)
                bare[length].append((time.perf_counter() - middle) / tokens * 1e9)
        progress(f"round {number} of {given.rounds}")
    results: dict[str, Any] = {
        str(length): {
            "conversations": len(work[length][0]),
            "ns_per_token": round(median(cost[length])),
            "tokenising_ns_per_token": round(median(bare[length])),
        }
        for length in LENGTHS
    }
    figures = [results[str(length)]["ns_per_token"] for length in LENGTHS]
    report("length", {"lengths": results, "longest_over_shortest": round(figures[-1] / figures[0], 3)}, given.json)


if __name__ == "__main__":
    main()
