"""Cost per token of converting one conversation, from 100 to 100,000 tokens: it has to be flat.

The same amount of text is cut into conversations of every length, so that each measurement converts about as many
tokens. Bare tokenising of the same texts stands beside it: what grows there, grows here.

Beside it the same for conversations of 20 to 20,000 short messages: what a planner and the schedule keep of the turns so
far must not be looked through for each of them.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from common import median, parser, progress, records, report, texts_of

LENGTHS = (100, 1_000, 10_000, 100_000)
MESSAGES = (20, 2_000, 20_000)
#: Words of one message of many.
WORDS = 10


def dialogues(texts: list[str], messages: int, total_messages: int) -> tuple[list[bytes], list[str]]:
    """Records of so many short messages, user and assistant in turn, ``total_messages`` in all; and their texts."""
    pool = " ".join(texts).split(" ")
    while len(pool) < messages * WORDS:
        pool += pool
    contents = [" ".join(pool[i : i + WORDS]) for i in range(0, messages * WORDS, WORDS)]
    roles = ("user", "assistant")
    record = {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]}
    count = total_messages // messages
    return [json.dumps(record).encode()] * count, contents * count


def as_records(lines: list[bytes]) -> list[Any]:
    """Lines as a container gives them."""
    from pipeline.read.containers import Record

    return [Record(i, line, 0, len(line)) for i, line in enumerate(lines)]


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

    total = round(given.tokens / tokens_per_word)
    work: dict[str, tuple[str, list[Any], list[str]]] = {}
    for length in LENGTHS:
        lines = conversations(texts, round(length / tokens_per_word), total)
        work[f"{length} tokens"] = ("prompt-completion", as_records(lines), texts_of(lines))
    for messages in MESSAGES:
        lines, contents = dialogues(texts, messages, max(total // WORDS, MESSAGES[-1]))
        work[f"{messages} messages"] = ("openai", as_records(lines), contents)
    cost: dict[str, list[float]] = {name: [] for name in work}
    bare: dict[str, list[float]] = {name: [] for name in work}
    for number in range(given.rounds + 1):
        for name, (form, found, own) in work.items():
            started = time.perf_counter()
            counts = converter.convert("x", form, found).counts
            middle = time.perf_counter()
            assert counts.converted == len(found), counts
            for i in range(0, len(own), CALL_TEXTS):
                tokenizer._tokenizer.encode_batch_fast(own[i : i + CALL_TEXTS], add_special_tokens=False)
            if number:  # the first round warms up
                cost[name].append((middle - started) / counts.tokens * 1e9)
                bare[name].append((time.perf_counter() - middle) / counts.tokens * 1e9)
        progress(f"round {number} of {given.rounds}")

    def result(name: str) -> dict[str, int]:
        return {
            "conversations": len(work[name][1]),
            "ns_per_token": round(median(cost[name])),
            "tokenising_ns_per_token": round(median(bare[name])),
        }

    def growth(results: dict[str, dict[str, int]]) -> float:
        figures = [each["ns_per_token"] for each in results.values()]
        return round(figures[-1] / figures[0], 3)

    by_length = {str(length): result(f"{length} tokens") for length in LENGTHS}
    by_messages = {str(messages): result(f"{messages} messages") for messages in MESSAGES}
    report(
        "length",
        {
            "lengths": by_length,
            "longest_over_shortest": growth(by_length),
            "messages": by_messages,
            "most_over_fewest_messages": growth(by_messages),
        },
        given.json,
    )


if __name__ == "__main__":
    main()
