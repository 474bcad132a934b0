"""The decoded dataset: flat, memory-mapped arrays on a local disk, which all processes of a machine share.

Parquet gives its rows in file order only; training wants any order. So the spans are decoded once into a few ``.npy`` files
(4 bytes per token, 14 per span, 29 per conversation) in a folder named by the hash of the manifest. The folder is written
under another name and renamed: it is whole, or not there. Whoever comes while it is being written waits; where the file
system knows no locks, both write, and one of them throws its own away.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.store import manifest
from pipeline.store.dataset import Columns, Dataset
from pipeline.store.format import MANIFEST
from trainer.data.cells import Conversations
from trainer.data.hashing import of_text

#: Raised whenever what the files hold changes.
_VERSION = 1
_FOLDER = "_cache"

_WINDOW = re.compile(r"(?P<conversation>.*:\d+)#(?P<number>\d+)", re.DOTALL)
_TRUNCATED = re.compile("_*truncated")

_TYPES: dict[str, type[np.generic]] = {
    "grid_offsets": np.int64,
    "stream": np.int16,
    "start": np.int32,
    "token_offsets": np.int64,
    "tokens": np.int32,
    "num_rows": np.int32,
    "cut_short": np.bool_,
    "id_hash": np.uint64,
    "record_hash": np.uint64,
}

#: What a killed process left is deleted when it is this old: on another machine it may be alive.
_STALE_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Decoded:
    """N grids with M spans and T tokens, as flat arrays; rows of the dataset in its own order."""

    #: ``grid_offsets[g] : grid_offsets[g + 1]`` are the spans of grid g. int64 [N + 1]
    grid_offsets: NDArray[np.int64]
    #: Stream (layout number) and first row of every span. int16, int32 [M]
    stream: NDArray[np.int16]
    start: NDArray[np.int32]
    #: ``token_offsets[s] : token_offsets[s + 1]`` are the tokens of span s. int64 [M + 1]
    token_offsets: NDArray[np.int64]
    #: int32 [T]
    tokens: NDArray[np.int32]
    #: Rows of every grid. int32 [N]
    num_rows: NDArray[np.int32]
    #: Whether the conversation goes on after the last row: it was truncated, or has later windows. bool [N]
    cut_short: NDArray[np.bool_]
    #: Hash of the id; and of the raw record, which all windows of a conversation share. uint64 [N]
    id_hash: NDArray[np.uint64]
    record_hash: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.num_rows)

    def take(self, numbers: NDArray[np.int64], tokens: bool = True) -> Conversations:
        """Some grids, in any order. Without ``tokens``, only what their lengths depend on."""
        begin, end = self.grid_offsets[numbers], self.grid_offsets[numbers + 1]
        counts = end - begin
        own = np.repeat(begin - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
        first = self.token_offsets[own]
        pieces = [np.zeros(0, np.int32)]
        if tokens:  # the tokens of a grid stand together
            bounds = zip(self.token_offsets[begin].tolist(), self.token_offsets[end].tolist(), strict=True)
            pieces += [self.tokens[low:high] for low, high in bounds]
        return Conversations(
            self.num_rows[numbers].astype(np.int64),
            self.cut_short[numbers],
            self.id_hash[numbers],
            np.repeat(np.arange(len(numbers)), counts),
            self.stream[own].astype(np.int64),
            self.start[own].astype(np.int64),
            self.token_offsets[own + 1] - first,
            np.concatenate(pieces),
        )


def manifest_hash(dataset: Dataset) -> str:
    """SHA-256 of the manifest on disk. Raises UserError where it is no longer the one that was opened."""
    data, path = dataset.place.get(MANIFEST), dataset.place.path(MANIFEST)
    if data is None or manifest.decode(data, path) != dataset.manifest:
        raise UserError(
            f"{path}: changed or gone since the dataset was opened; wait for its conversion to end, and start again"
        )
    return hashlib.sha256(data).hexdigest()


def decode(dataset: Dataset, folder: str | None = None) -> Decoded:
    """The dataset, decoded now or by an earlier run. ``folder``: where to keep it; None: below the dataset, or in the
    user's cache folder where nothing can be written there.

    Raises UserError for shards that are not what the manifest says, and where nothing can be written.
    """
    name = f"{manifest_hash(dataset)}-{_VERSION}"
    places = [Path(folder).expanduser()] if folder is not None else _default_places(dataset)
    for place in places:
        if (place / name).is_dir():
            return _open(place / name)
    failures = []
    for place in places:
        try:
            with _lock(place) as alone:
                if not (place / name).is_dir():
                    if alone:
                        _tidy(place, name, of_dataset=_within_dataset(place, dataset))
                    _write(dataset, place, name)
            return _open(place / name)
        except OSError as error:
            failures.append(f"{place}: {error.strerror or error}")
    raise UserError(
        f"data.cache: the decoded dataset cannot be written: {'; '.join(failures)}; give another folder with data.cache"
    )


def _default_places(dataset: Dataset) -> list[Path]:
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "multistream-trainer"
    return [Path(dataset.place.path(_FOLDER)), user] if dataset.place.local else [user]


def _within_dataset(place: Path, dataset: Dataset) -> bool:
    return dataset.place.local and place == Path(dataset.place.path(_FOLDER))


@contextmanager
def _lock(place: Path) -> Iterator[bool]:
    """Wait until no other process on this machine writes into ``place``. Gives False on a file system without locks."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _tidy(place: Path, name: str, of_dataset: bool) -> None:
    """Delete what killed processes left, and what was decoded of a dataset that is no longer there."""
    old = time.time() - _STALE_SECONDS
    stale = [path for path in place.glob(".*.tmp") if path.stat().st_mtime < old]
    if of_dataset:  # one place holds one dataset: other manifests are older ones
        stale += [path for path in place.glob(f"*-{_VERSION}") if path.name != name]
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)


def _write(dataset: Dataset, place: Path, name: str) -> None:
    temporary = place / f".{name}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        with _Files(temporary) as files:
            spans = tokens = 0
            files.append("grid_offsets", np.zeros(1, np.int64))
            files.append("token_offsets", np.zeros(1, np.int64))
            for number in range(len(dataset.manifest.shards)):
                columns = dataset.shard(number)
                for field, array in _shard(dataset, number, columns, spans, tokens).items():
                    files.append(field, array)
                spans += len(columns.spans.stream)
                tokens += len(columns.spans.tokens)
        try:
            temporary.rename(place / name)
        except OSError:
            if not (place / name).is_dir():  # another process was faster: the same bytes
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _shard(dataset: Dataset, number: int, columns: Columns, spans: int, tokens: int) -> dict[str, NDArray[Any]]:
    """What one shard adds to every array; ``spans`` and ``tokens`` stand before it."""
    shard = dataset.manifest.shards[number]
    if dataset.place.sha256(shard.path) not in (shard.sha256, None):  # None: not there, as reading it will say
        raise UserError(
            f"{dataset.place.path(shard.path)}: not the file that the manifest says (its SHA-256 is another); "
            f"'pipeline validate' says more"
        )
    own = columns.spans
    later = _later_windows(columns.ids)
    if shard.counts.truncated:
        later |= np.array([_truncated(meta) for meta in columns.meta], np.bool_)
    return {
        "grid_offsets": own.grid_offsets[1:].astype(np.int64) - int(own.grid_offsets[0]) + spans,
        "stream": own.stream,
        "start": own.start,
        "token_offsets": own.token_offsets[1:].astype(np.int64) - int(own.token_offsets[0]) + tokens,
        "tokens": own.tokens,
        "num_rows": own.num_rows,
        "cut_short": later,
        "id_hash": np.array([of_text(id_) for id_ in columns.ids], np.uint64),
        "record_hash": np.array([int.from_bytes(s["sha256"][:8], "little") for s in columns.source], np.uint64),
    }


def _later_windows(ids: list[str]) -> NDArray[np.bool_]:
    """Which grids are windows that another one follows. The windows of a conversation stand together in a shard."""
    windows = [_WINDOW.fullmatch(id_) if "#" in id_ else None for id_ in ids]
    follows = [
        a is not None
        and b is not None
        and a["conversation"] == b["conversation"]
        and int(b["number"]) == int(a["number"]) + 1
        for a, b in pairwise(windows)
    ]
    return np.array([*follows, False][: len(ids)], np.bool_)


def _truncated(meta: str) -> bool:
    """Whether the converter cut a conversation short. It says so under the longest of these keys: where the corpus has
    such a key itself, the converter puts an underscore before."""
    document = json.loads(meta)
    keys = [key for key in document if _TRUNCATED.fullmatch(key)]
    said = document[max(keys, key=len)] if keys else None
    return isinstance(said, dict) and said.keys() == {"turns_kept", "turns", "rows"}


class _Files:
    """Writes ``.npy`` files piece by piece: a header has room for any length, and is written again at the end."""

    def __init__(self, folder: Path) -> None:
        self._streams: dict[str, IO[bytes]] = {}
        self._counts = dict.fromkeys(_TYPES, 0)
        for name in _TYPES:
            self._streams[name] = (folder / f"{name}.npy").open("wb")
            self._header(name)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, stream in self._streams.items():
            with stream:
                if kind is None:
                    body = stream.tell() - self._counts[name] * np.dtype(_TYPES[name]).itemsize
                    stream.seek(0)
                    self._header(name)
                    assert stream.tell() == body, "the header of another length has another size"
                    stream.flush()
                    os.fsync(stream.fileno())

    def _header(self, name: str) -> None:
        header = {"descr": npy.dtype_to_descr(np.dtype(_TYPES[name])), "fortran_order": False}
        npy.write_array_header_1_0(self._streams[name], header | {"shape": (self._counts[name],)})

    def append(self, name: str, array: NDArray[Any]) -> None:
        """Add the elements of an array to a file."""
        self._streams[name].write(np.ascontiguousarray(array, _TYPES[name]).data)
        self._counts[name] += len(array)


def _open(folder: Path) -> Decoded:
    try:
        return Decoded(**{name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _TYPES})
    except (OSError, EOFError, ValueError) as error:
        raise UserError(
            f"data.cache: {folder}: cannot be read: {error}; delete it, and it will be made again"
        ) from None
