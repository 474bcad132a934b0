"""Which files a model's directory holds: told apart by their content, without reading hundreds of gigabytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

#: Files up to this size are read whole: configurations, tokenizers, code, adapters, small models.
_WHOLE = 64 << 20
#: Of larger files: the two ends, blocks spread evenly between them, and a piece from the beginning, the middle and the end
#: of every tensor, where the file says where its tensors are.
_END = 1 << 20
_BLOCKS = 64
_BLOCK = 64 << 10
_PIECE = 4 << 10
#: A longer header is none.
_LONGEST_HEADER = 100 << 20
#: Reading at many places of a file waits for the disk, or for the network behind it.
_READERS = 8


def describe_directory(path: Path) -> str:
    """A hash over the files of a model's directory: their names, sizes and content; of large ones, samples.

    Stays the same when the directory is copied or renamed. Hidden files and folders (caches, version control) do not
    count. What is sampled touches every tensor of ``.safetensors`` files, so whatever trains, merges or quantises a model
    shows, also where it leaves most tensors alone; a change by hand of a few numbers inside one tensor need not.
    """
    insides = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    names = [inside.as_posix() for inside in insides if not any(part.startswith(".") for part in inside.parts)]
    digest = sha256()
    with ThreadPoolExecutor(_READERS) as readers:
        for name, content in zip(names, readers.map(_describe, [path / name for name in names]), strict=True):
            digest.update(os.fsencode(name) + b"\0" + content)
    return digest.hexdigest()[:16]


def _describe(file: Path) -> bytes:
    """A hash over the size of a file and what is sampled of it."""
    digest = sha256()
    with file.open("rb", buffering=0) as opened:
        handle = opened.fileno()
        size = os.fstat(handle).st_size
        digest.update(f"{size}\0".encode())
        for start, length in _samples(handle, size, file.suffix == ".safetensors"):
            digest.update(os.pread(handle, length, start))
    return digest.digest()


def _samples(handle: int, size: int, tensors: bool) -> Iterator[tuple[int, int]]:
    """Start and length of what is read of a file, in bytes; which, depends on its size and its header alone."""
    if size <= _WHOLE:
        yield from ((start, _END) for start in range(0, size, _END))
        return
    yield 0, _END
    yield size - _END, _END
    yield from (((size - _BLOCK) * number // (_BLOCKS + 1), _BLOCK) for number in range(1, _BLOCKS + 1))
    for begin, end in _tensors(handle, size) if tensors else ():
        if end - begin <= 3 * _PIECE:
            yield begin, end - begin
        else:
            yield from ((start, _PIECE) for start in (begin, (begin + end - _PIECE) // 2, end - _PIECE))


def _tensors(handle: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the tensors of a ``.safetensors`` file begin and end, in the order of the file; none where it is damaged.

    The format: the header's length in eight bytes, the header in JSON, then the tensors, at offsets from its end.
    """
    length = int.from_bytes(os.pread(handle, 8, 0), "little")
    if length > min(size - 8, _LONGEST_HEADER):
        return
    try:
        header = json.loads(os.pread(handle, length, 8))
        places = sorted(entry["data_offsets"] for name, entry in header.items() if name != "__metadata__")
        bounds = [(8 + length + begin, 8 + length + end) for begin, end in places]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # whoever loads it says what is wrong
    yield from ((begin, end) for begin, end in bounds if 8 + length <= begin <= end <= size)
