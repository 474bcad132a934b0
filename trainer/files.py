"""Files and folders that are whole or not there, also after a power cut and on a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError

#: A writer that fails with less than this left on the disk fails for that.
_ROOM = 16 * 2**20


def write(path: Path, text: str) -> None:
    """Write a file beside, and rename it."""
    with new_file(path) as beside:
        beside.write_text(text)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path beside to write to; it takes the place of ``path``, or is deleted where something fails."""
    beside = beside_of(path)
    try:
        with named(path):
            yield beside
            sync(beside)
            beside.replace(path)
            sync(path.parent)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(beside):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder beside to write in; it takes the place of ``final``, or is deleted where something fails.

    Raises UserError, with the reason, where the disk is at fault.
    """
    beside = beside_of(final)
    shutil.rmtree(beside, ignore_errors=True)
    with complete(final, beside):
        beside.mkdir(parents=True)
        yield beside
        put_folder(beside, final)


@contextlib.contextmanager
def complete(final: Path, beside: Path) -> Iterator[None]:
    """Delete ``beside``, which is to become ``final``, where its writing fails; UserError where the disk is at fault."""
    try:
        yield
    except BaseException as error:
        reason = _disk_fault(error, final)
        shutil.rmtree(beside, ignore_errors=True)
        if reason is None:
            raise
        raise UserError(f"{final}: cannot be written: {reason}; what was begun is deleted") from None


def beside_of(path: Path) -> Path:
    """Where something is written before it has its name."""
    return path.with_name(f".{path.name}.writing")


def put_folder(beside: Path, final: Path) -> None:
    """Give a folder that was written beside its name. One that has it already is moved aside, and deleted at the end."""
    for path in [*beside.rglob("*"), beside]:
        sync(path)
    aside = final.with_name(f".{final.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        final.rename(aside)
    beside.rename(final)
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of the system name the file: a write to an open one does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def check_folder(path: Path) -> None:
    """Raise UserError where no folder can be made at ``--out path``, before anything costs time."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"--out {path}: {there} is a file; give a directory")
    if not os.access(there, os.W_OK):
        raise UserError(f"--out {path}: {there} may not be written to; give another directory")


def _disk_fault(error: BaseException, path: Path) -> str | None:
    """What the disk has to do with an error, if anything: torch and safetensors wrap what the system says."""
    if isinstance(error, KeyboardInterrupt):
        return None
    for each in _causes(error):
        if isinstance(each, OSError) and each.errno:
            return os.strerror(each.errno)
        if wrapped := re.search(r"\(os error (\d+)\)", str(each)):
            return os.strerror(int(wrapped[1]))
    if "inline_container" in str(error):  # torch's file writer, in a process whose causes do not come over
        place = next(place for place in path.absolute().parents if place.exists())
        full = shutil.disk_usage(place).free < _ROOM
        return os.strerror(errno.ENOSPC) if full else str(error).strip().splitlines()[-1]
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised from or amid; torch keeps those of all processes in ``failures``."""
    while error is not None:
        yield error
        for cause, _ in getattr(error, "failures", {}).values():
            yield from _causes(cause)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
