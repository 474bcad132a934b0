"""What a run reads: files, directories, globs and URLs, resolved to a sorted list of files."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import msgspec

from pipeline.errors import UserError
from pipeline.location import is_url, redact, redact_all
from pipeline.read.containers.kind import COMPRESSIONS, SUFFIXES, split_suffix

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_WILD = re.compile(r"[*?\[]")
_URL_WILD = re.compile(r"[*\[]")  # in a URL a question mark begins the query

_KNOWN = f"{', '.join(SUFFIXES)}, plain or with {' or '.join(COMPRESSIONS)}"


class InputFile(msgspec.Struct, frozen=True):
    """One file of the input."""

    #: Relative to what was given, ``/``-separated, without credentials: what the dataset says about the
    #: source.
    name: str
    #: Absolute path or URL to open it by. A URL may hold credentials: not for messages, nor for anything
    #: stored.
    location: str
    #: Bytes as stored.
    size: int


def resolve_inputs(specs: Sequence[str]) -> list[InputFile]:
    """The files that ``specs`` stand for, sorted by name; the order of ``specs`` does not matter.

    A spec is a file, a directory (searched for known endings, hidden files left out), a glob with ``*``,
    ``?``, ``[]`` and ``**``, or a URL of any of these that ``pyarrow.fs`` opens. A file is named by its base
    name, or by its path below the directory or below the fixed beginning of the glob. A file that is given
    twice is read once; different files of one name get as many of their parent folders as tell them apart.
    Raises UserError.
    """
    if not specs:
        raise UserError("no input: give a file, a directory, a glob or a URL with --input")
    found: dict[str, InputFile] = {}  # by what the file is, whatever path led to it
    for spec in specs:
        files = list(_resolve_url(spec) if is_url(spec) else _resolve_path(spec))
        if not files:
            raise UserError(f"no input file in {redact(spec)}: expected files ending in {_KNOWN}")
        for file in files:
            identity = file.location if is_url(file.location) else os.path.realpath(file.location)
            known = found.get(identity)
            if known is None or (file.name, file.location) < (known.name, known.location):
                found[identity] = file
    return sorted(_distinct(list(found.values())), key=lambda file: file.name)


def open_input(location: str) -> BinaryIO:
    """Open a path or URL for reading raw bytes, seekable. Raises UserError naming it."""
    try:
        if is_url(location):
            filesystem, path = _filesystem(location)
            return cast(BinaryIO, filesystem.open_input_file(path))
        return Path(location).open("rb", buffering=0)
    except OSError as error:
        raise unreadable(location, error) from None


#: Size and time of the last change, in nanoseconds: another stamp may be another file.
Stamp = tuple[int, int]


def stamp(location: str) -> Stamp:
    """The stamp of a file. Raises UserError naming it."""
    try:
        if not is_url(location):
            found = Path(location).stat()
            return found.st_size, found.st_mtime_ns
        filesystem, path = _filesystem(location)
        info = filesystem.get_file_info(path)
        return info.size or 0, info.mtime_ns or 0
    except OSError as error:
        raise unreadable(location, error) from None


@contextmanager
def opened(location: str) -> Iterator[BinaryIO]:
    """A file to read from, closed afterwards; what goes wrong while reading is a UserError too."""
    stream = open_input(location)
    try:
        yield stream
    except OSError as error:
        raise unreadable(location, error) from None
    finally:
        stream.close()


def unreadable(location: str, error: OSError) -> UserError:
    """The error for a file or directory that cannot be read, with its remedy."""
    shown = redact(location)
    if isinstance(error, FileNotFoundError):
        return UserError(f"{shown}: no such file or directory; check the path given with --input")
    if isinstance(error, PermissionError):
        return UserError(f"{shown}: permission denied; give the user that runs this read access")
    reason = error.strerror or str(error).partition("\n")[0]
    return UserError(f"{shown}: cannot be read: {redact_all(reason, location)}")


# Local paths


def _resolve_path(spec: str) -> Iterator[InputFile]:
    path = Path(spec).expanduser()
    if path.is_dir():
        yield from _walk(path)
    elif path.exists() or path.is_symlink():
        yield _local_file(path.name, path)
    elif _WILD.search(spec):
        yield from _glob(str(path))
    else:
        raise unreadable(spec, FileNotFoundError())


def _local_file(name: str, path: Path) -> InputFile:
    try:
        size = path.stat().st_size
        if not os.access(path, os.R_OK):
            raise PermissionError
    except OSError as error:
        raise unreadable(str(path), error) from None
    if not path.is_file():
        raise UserError(f"{path}: not a regular file; write it to a file first, it is read more than once")
    return InputFile(name, str(Path(os.path.abspath(path))), size)  # noqa: PTH100 -- resolve() would follow links


def _walk(root: Path) -> Iterator[InputFile]:
    seen: set[str] = set()  # links may lead in circles

    def refuse(error: OSError) -> None:
        raise unreadable(str(error.filename or root), error)

    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        if "dataset.json" in files and "data" in folders:  # grids that some run made, not a corpus
            folders[:] = []
            continue
        for file in files:
            path = Path(folder, file)
            if _wanted(file):
                yield _local_file(path.relative_to(root).as_posix(), path)


def _glob(pattern: str) -> Iterator[InputFile]:
    root = _fixed_prefix(pattern, _WILD)
    everything = _names_ending(pattern)
    for match in glob.glob(pattern, recursive=True):  # noqa: PTH207 -- Path.glob wants a relative pattern
        path = Path(match)
        if path.is_file() and (everything or _wanted(path.name)):
            yield _local_file(os.path.relpath(match, root or ".").replace(os.sep, "/"), path)


# URLs


def _filesystem(url: str) -> tuple[FileSystem, str]:
    """The file system of a URL and the path in it."""
    from pyarrow import ArrowException  # a slow import, and not needed for local files
    from pyarrow.fs import FileSystem

    try:
        return cast("tuple[FileSystem, str]", FileSystem.from_uri(url))
    except (ArrowException, OSError) as error:
        reason = redact_all(str(error).partition("\n")[0], url)
        raise UserError(f"{redact(url)}: cannot open a URL of this kind: {reason}") from None


def _resolve_url(url: str) -> Iterator[InputFile]:
    parts = urlsplit(url)
    if not _URL_WILD.search(parts.path):
        yield from _list_url(url, None)
        return
    base = _fixed_prefix(parts.path, _URL_WILD)
    root = urlunsplit((parts.scheme, parts.netloc, base, parts.query, ""))
    yield from _list_url(root, unquote(parts.path[len(base) :].lstrip("/")))


def _list_url(url: str, pattern: str | None) -> Iterator[InputFile]:
    """The file at ``url``, or those below it: with known endings, or whose path below it fits ``pattern``."""
    from pyarrow.fs import FileSelector, FileType

    filesystem, path = _filesystem(url)
    try:
        info = filesystem.get_file_info(path)
        if info.type == FileType.File and pattern is None:
            yield InputFile(path.rpartition("/")[2], url, info.size)
            return
        if info.type == FileType.NotFound:
            raise FileNotFoundError
        infos = filesystem.get_file_info(FileSelector(path, recursive=True))
    except OSError as error:
        raise unreadable(url, error) from None
    everything = pattern is not None and _names_ending(pattern)
    for info in infos:
        if info.type != FileType.File:
            continue
        name = info.path[len(path.rstrip("/")) + 1 :]
        if pattern is not None and not _fits(name.split("/"), pattern.split("/")):
            continue
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not hidden and (everything or _wanted(info.base_name)):
            yield InputFile(name, _below(url, name), info.size)


def _below(url: str, name: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


# Names


def _wanted(file: str) -> bool:
    return not file.startswith(".") and split_suffix(file)[0] != ""


def _names_ending(pattern: str) -> bool:
    """The pattern itself says which ending it wants (``*.txt``); otherwise only known endings are taken."""
    ending = os.path.splitext(pattern.rpartition("/")[2])[1]  # noqa: PTH122 -- a pattern, not a path
    return bool(ending) and not _WILD.search(ending)


def _fixed_prefix(pattern: str, wild: re.Pattern[str]) -> str:
    """The folders of a pattern before the first that has a wildcard."""
    match = wild.search(pattern)
    return pattern[: pattern.rfind("/", 0, match.start() if match else None) + 1]


def _fits(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a glob, both in parts: ``**`` is any number of folders, ``*`` stays in one."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_fits(path[skip:], pattern[1:]) for skip in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])


def _distinct(files: list[InputFile]) -> list[InputFile]:
    """Names made different by trailing parts of the path, as few as are needed."""
    names = [file.name for file in files]
    paths = [_path_parts(file.location) for file in files]
    depth = [name.count("/") + 1 for name in names]
    while True:
        counts = Counter(names)
        clashes = [i for i, name in enumerate(names) if counts[name] > 1]
        if not clashes:
            return [msgspec.structs.replace(file, name=name) for file, name in zip(files, names, strict=True)]
        for i in clashes:
            rivals = [paths[j] for j in clashes if names[j] == names[i]]
            if depth[i] >= len(paths[i]) and rivals == [paths[i]] * len(rivals):
                raise UserError(f"{redact(files[i].location)}: given twice, by URLs that differ; give it once")
        for i in clashes:
            depth[i] = min(depth[i] + 1, len(paths[i]))
            names[i] = "/".join(paths[i][-depth[i] :])


def _path_parts(location: str) -> list[str]:
    shown = redact(location)
    if is_url(shown):
        shown = unquote(shown.partition("://")[2])
    return [part for part in shown.replace(os.sep, "/").split("/") if part]
