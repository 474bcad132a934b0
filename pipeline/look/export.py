"""A dataset in the form that other trainers read."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec

from pipeline.errors import UserError
from pipeline.store.dataset import Dataset
from pipeline.store.format import MANIFEST

ROWS_JSONL = "dataset.jsonl"


def export_rows_jsonl(dataset: Dataset, out_dir: str, progress: Callable[[int], None] | None = None) -> int:
    """Write ``OUT_DIR/dataset.jsonl``, the form that the paper's trainer reads; returns the number of lines.

    One line per grid: ``{"num_rows": n, "token_ids": [[stream 0's token in every row], …]}``; ``token_ids``
    is [streams][rows], silence filled in. Streams are numbered as in the layout. One grid is in memory at a
    time, beside its shard. The file has its name only when it is whole.

    ``progress`` is called after every shard with the number of grids so far.
    Raises :class:`UserError` where there is such a file already, or where nothing can be written.
    """
    if "://" in out_dir:
        raise UserError(f"--out {out_dir}: rows-jsonl is written to a local directory; copy it from there")
    folder = Path(out_dir).expanduser()
    target = folder / ROWS_JSONL
    if (folder / MANIFEST).exists():
        raise UserError(f"--out {out_dir}: holds a dataset; give a directory of its own")
    if target.exists():
        raise UserError(f"{target}: exists already; delete it, or give another directory with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{ROWS_JSONL}.{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("xb", buffering=1 << 20) as stream:
                lines = 0
                for number in range(len(dataset.manifest.shards)):
                    columns = dataset.shard(number)
                    for index in range(len(columns)):
                        grid = columns.grid(index)
                        line = {"num_rows": grid.num_rows, "token_ids": grid.dense().T.tolist()}
                        stream.write(msgspec.json.encode(line))
                        stream.write(b"\n")
                    lines += len(columns)
                    if progress is not None:
                        progress(lines)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {out_dir}: cannot be written: {error.strerror or error}") from None
    return lines
