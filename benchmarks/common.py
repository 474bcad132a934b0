"""What the benchmarks share: a corpus, the machine's description, and results as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"
GSM8K = SHARED / "corpora" / "gsm8k-train-5000.jsonl"
NEOX = SHARED / "tokenizers" / "gpt-neox-20b.tokenizer.json"
REASONING = HERE.parent / "examples" / "corpus" / "reasoning.jsonl.zst"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--corpus",
        type=Path,
        default=GSM8K if GSM8K.exists() else None,
        help="question/answer .jsonl; default: GSM8K beside the checkout, else the examples",
    )
    made.add_argument("--tokenizer", default=str(NEOX) if NEOX.exists() else "builtin")
    made.add_argument("--json", type=Path, help="also write the results to this file")
    return made  # fmt: skip


def records(corpus: Path | None, count: int) -> list[bytes]:
    """``count`` question/answer records; the corpus is repeated where it is shorter."""
    if corpus is not None:
        lines = [line for line in corpus.read_bytes().split(b"\n") if line]
    else:
        import zstandard

        unpacked = zstandard.ZstdDecompressor().stream_reader(REASONING.read_bytes()).read()
        lines = [line for line in unpacked.split(b"\n") if line]
    return [lines[i % len(lines)] for i in range(count)]


def texts_of(lines: Sequence[bytes]) -> list[str]:
    """The texts of question/answer records, in order."""
    texts: list[str] = []
    for line in lines:
        record = json.loads(line)
        texts += [record["question"], record["answer"]]
    return texts


def machine() -> dict[str, Any]:
    """Size of the machine, without its name."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"cpus": os.cpu_count(), "memory_gib": round(pages / 2**30), "python": platform.python_version()}


def report(name: str, results: dict[str, Any], path: Path | None) -> None:
    """Print the results, and write them as JSON where asked."""
    print(save(name, results, path))


def save(name: str, results: dict[str, Any], path: Path | None) -> str:
    """Write the results as JSON where asked; they are also returned."""
    text = json.dumps({"benchmark": name, "machine": machine(), **results}, indent=1)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return text


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def progress(text: str) -> None:
    """A line for the person who waits."""
    print(text, file=sys.stderr, flush=True)
