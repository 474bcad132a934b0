"""Bytes of Parquet file per token, and how fast grids are read back.

Size: GSM8K with a 50k vocabulary, whole files, all columns, per non-silent cell.
Reading, one process, files in the page cache: ``ds.columns()`` in tokens per second; dense grids in cells per second,
on two streams (GSM8K) and on ten (texts of the same corpus dealt to the ten streams of ``cognition-10``), both with one
array per shard and with one ``Grid.dense()`` per conversation. The limit beside it: ``pyarrow.parquet`` reading the
same columns and doing nothing with them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from common import median, parser, progress, records, report


def convert(lines: list[bytes], out: str, tokenizer: str, settings: list[str], folder: str) -> None:
    """Convert records with wait-k."""
    from jobs.progress import Progress
    from jobs.run import RunOptions, run
    from pipeline.grid.tokens import load_tokenizer
    from pipeline.read.inputs import resolve_inputs
    from pipeline.recipe import load_recipe

    corpus = Path(folder) / f"{Path(out).name}.jsonl"
    corpus.write_bytes(b"\n".join(lines) + b"\n")
    run(
        RunOptions(
            files=resolve_inputs([str(corpus)]),
            out=out,
            recipe=load_recipe("wait-k", settings),
            tokenizer=load_tokenizer(tokenizer),
            ray="off",
        ),
        Progress(),
    )


def ten_stream_dataset(source: Any, out: str) -> None:
    """Write the tokens of a two-stream dataset again as ten-stream grids, about a third of them said."""
    import numpy as np

    from pipeline.grid.spans import build_spans
    from pipeline.layout_file import load_layout
    from pipeline.store import manifest
    from pipeline.store.counts import Counts
    from pipeline.store.format import MANIFEST, TOKENIZER, data_path, schema_with_metadata
    from pipeline.store.place import Place
    from pipeline.store.writer import Rows, write_parquet

    layout = load_layout("cognition-10")
    place = Place(out)
    shards = []
    random = np.random.default_rng(0)
    for number, columns in enumerate(source.columns()):
        spans = columns.spans
        pieces = len(spans.stream)
        grid = np.repeat(np.arange(len(columns)), np.diff(spans.grid_offsets))
        length = np.diff(spans.token_offsets).astype(np.int64)
        # Streams in turn, each span after the one before it in its stream, and a pause: about a third is said.
        stream = (np.arange(pieces) - spans.grid_offsets[grid]) % 10
        start = np.zeros(pieces, np.int64)
        free: dict[tuple[int, int], int] = {}
        for i, (g, s, n) in enumerate(zip(grid.tolist(), stream.tolist(), length.tolist(), strict=True)):
            start[i] = free.get((g, s), 0) + int(random.integers(0, 12))
            free[g, s] = int(start[i]) + n
        made = build_spans(
            len(columns), grid, stream, start, np.zeros(pieces, np.int64), spans.tokens,
            spans.token_offsets[:-1].astype(np.int64), length, np.zeros(pieces, np.bool_), None,
        )  # fmt: skip
        count = len(columns)
        rows = Rows(columns.ids, ["x"] * count, list(range(count)), [b"0" * 32] * count, ["{}"] * count,
                    list(range(count + 1)), ["answer"] * count, [0] * count, [-1] * count)  # fmt: skip
        data = write_parquet([made], [rows], schema_with_metadata(layout.to_dict(), "0" * 64))
        place.put(data_path(number), data)
        counts = Counts(read=count, converted=count, rows=count, tokens=len(made.tokens))
        nothing = manifest.File("plans", 0, "0" * 64)
        shards.append(manifest.Shard(data_path(number), count, len(data), hashlib.sha256(data).hexdigest(),
                                     len(made.tokens), nothing, None,
                                     manifest.Source("x", 0, count), counts))  # fmt: skip
    document = json.loads(source.place.get(MANIFEST))
    import msgspec

    document["layout"] = layout.to_dict()
    document["shards"] = msgspec.to_builtins(shards)
    document["counts"] = msgspec.to_builtins(sum((shard.counts for shard in shards), Counts()))
    place.put(TOKENIZER, source.place.get(TOKENIZER))
    place.put(MANIFEST, json.dumps(document).encode())


def timed(work: Callable[[], int], rounds: int) -> float:
    """The median of units per second."""
    rates = []
    for _ in range(rounds):
        started = time.perf_counter()
        units = work()
        rates.append(units / (time.perf_counter() - started))
    return median(rates)


def read_only(dataset: Any) -> int:
    """Read the columns with pyarrow and do nothing: the limit."""
    import pyarrow.parquet as pq

    tokens = 0
    for shard in dataset.manifest.shards:
        pq.read_table(
            dataset.place.path(shard.path), columns=["id", "num_rows", "num_tokens", "spans"], use_threads=False
        )
        tokens += shard.tokens
    return tokens


def read_columns(dataset: Any) -> int:
    """``ds.columns()``, all arrays touched."""
    return sum(len(columns.spans.tokens) for columns in dataset.columns())


def read_dense(dataset: Any) -> int:
    """One dense array per shard."""
    return sum(columns.dense()[0].size for columns in dataset.columns())


def read_grids(dataset: Any) -> int:
    """One dense array per conversation."""
    return sum(grid.dense().size for grid in dataset)


def main() -> None:
    """Make both datasets, measure, report."""
    import pipeline

    options = parser(__doc__)
    options.add_argument("--conversations", type=int, default=20_000)
    options.add_argument("--rounds", type=int, default=7)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size_lines = records(given.corpus, 5_000)
        convert(size_lines, f"{folder}/size", given.tokenizer, ["layout=chat-2"], folder)
        convert(records(given.corpus, given.conversations), f"{folder}/two", given.tokenizer, ["layout=chat-2"], folder)
        sized, two = pipeline.open_dataset(f"{folder}/size"), pipeline.open_dataset(f"{folder}/two")
        ten_stream_dataset(two, f"{folder}/ten")
        ten = pipeline.open_dataset(f"{folder}/ten")
        file_bytes = sum(shard.bytes for shard in sized.manifest.shards)
        results: dict[str, Any] = {
            "corpus": given.corpus.name if given.corpus else "examples",
            "tokenizer": sized.manifest.tokenizer.name,
            "bytes_per_token": round(file_bytes / sized.manifest.counts.tokens, 3),
            "bytes_per_token_asked": 1.6,
        }
        for name, dataset in (("two_streams", two), ("ten_streams", ten)):
            cells = read_dense(dataset)
            progress(f"{name}: {dataset.manifest.counts.tokens:,} tokens, {cells:,} cells")
            results[name] = {
                "speech": round(dataset.manifest.counts.tokens / cells, 3),
                "pyarrow_tokens_per_s": round(timed(lambda d=dataset: read_only(d), given.rounds)),
                "columns_tokens_per_s": round(timed(lambda d=dataset: read_columns(d), given.rounds)),
                "dense_cells_per_s": round(timed(lambda d=dataset: read_dense(d), given.rounds)),
                "grid_by_grid_cells_per_s": round(timed(lambda d=dataset: read_grids(d), 3)),
            }
        results["asked"] = {
            "columns_tokens_per_s": 20e6,
            "two_streams_cells_per_s": 25e6,
            "ten_streams_cells_per_s": 100e6,
        }
        report("size_and_reading", results, given.json)


if __name__ == "__main__":
    main()
