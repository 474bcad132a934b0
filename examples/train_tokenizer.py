"""Trains the built-in tokenizer and writes ``pipeline/grid/builtin.tokenizer.json``.

Byte-level BPE of 8,192 ids: 256 bytes, 7,935 merges, and ``<|endoftext|>`` as the last. It exists so that
everything runs without a download; for a real model use that model's own tokenizer.

The text is free to use and already here: the example corpus, Python's language reference (``pydoc_data``) and
the docstrings of its standard library. The result depends only on these and on the version of ``tokenizers``,
not on the number of threads. The committed file was made by CPython 3.11.7 with tokenizers 0.23.3; another
Python has other docstrings and gives another vocabulary, so do not run this again just for a changed example.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import zstandard
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 8192
END = "<|endoftext|>"
HERE = Path(__file__).parent
OUT = HERE.parent / "pipeline" / "grid" / "builtin.tokenizer.json"

#: How often the corpus is counted: its words should be whole, yet the vocabulary should not be its echo.
CORPUS_WEIGHT = 4

#: Like GPT-4's and Qwen's, with three differences. Marks stay with their letters (Hindi, Thai, accents).
#: Punctuation takes neither a line break after it nor a letter, so that a cut between sentences falls on a
#: token boundary. Digits are single: a number costs as many tokens as it has digits, whatever it is.
WORDS = "|".join(
    [
        r"['’](?i:s|t|re|ve|m|ll|d)(?!\p{L})",  # the endings of can't, we’ll
        r" ?\p{L}[\p{L}\p{M}]*",  # a word and the space before it
        r"\p{N}",  # one digit
        r" ?[^\s\p{L}\p{N}]+",  # punctuation, symbols, emoji with their joiners
        r"\s*[\r\n]+",  # line breaks and what stands before them
        r"\s+(?!\S)",  # spaces, except the one that belongs to the next word
        r"\s+",
    ]
)


def corpus_texts() -> Iterator[str]:
    """Every text of the example conversations, and every tool call as the JSON that it becomes in a grid."""
    corpus = HERE / "corpus"
    for line in (corpus / "agent.jsonl").read_text(encoding="utf-8").splitlines():
        for message in json.loads(line)["messages"]:
            yield from _strings([message["content"], message.get("reasoning_content")])
            for call in message.get("tool_calls", []):
                yield json.dumps(call["function"], ensure_ascii=False, separators=(",", ":"))
    for record in json.loads((corpus / "chat.json").read_text(encoding="utf-8")):
        yield from _strings(record["conversations"])
    with zstandard.open(corpus / "reasoning.jsonl.zst", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield from _strings(json.loads(line))


def python_texts() -> Iterator[str]:
    """Python's language reference, then the docstrings of the standard library, each once, by path."""
    yield from (topics[name] for name in sorted(topics))
    library = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data"}
    docstrings: dict[str, None] = {}  # a set that keeps its order
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).as_posix()):
        if skipped.isdisjoint(path.relative_to(library).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    docstrings[ast.get_docstring(node) or ""] = None
    yield from docstrings


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def train() -> Tokenizer:
    """The trained tokenizer. It gives back every text byte for byte: nothing is normalised, nothing added."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1,
        min_frequency=2,
        max_token_length=16,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*corpus_texts()] * CORPUS_WEIGHT + [*python_texts()], trainer)
    tokenizer.add_special_tokens([END])
    return tokenizer


if __name__ == "__main__":
    tokenizer = train()
    compact = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    OUT.write_text(compact + "\n", encoding="utf-8", newline="\n")
    print(f"{OUT.name}: {tokenizer.get_vocab_size()} ids, {OUT.stat().st_size:,} bytes")
