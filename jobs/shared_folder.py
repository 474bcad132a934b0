"""Whether every node sees the same directory: the driver leaves a mark in it, and workers look for that.

A directory of the same name is on many nodes, as a rule in a home that they do not share; a worker that wrote its answers
there would keep them from all others, and from the next run.
"""

from __future__ import annotations

import errno
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import UserError

_MAY_NOT_WRITE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextmanager
def marked(folder: str, option: str) -> Iterator[str | None]:
    """Make a directory where there is none and leave a mark in it; the mark's name, None where nothing may be written to a
    directory that is there.

    Raises :class:`UserError` naming the option.
    """
    path = Path(folder)
    mark = path / f".seen-{uuid.uuid4().hex}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        if error.errno not in _MAY_NOT_WRITE or not path.is_dir():
            raise UserError(f"{option} {folder}: cannot be used: {error.strerror}") from None
        yield None
        return
    try:
        yield mark.name
    finally:
        with suppress(OSError):  # nobody minds an empty file
            mark.unlink()


def check_seen(folder: str, mark: str | None, option: str) -> None:
    """Raises :class:`UserError`, naming this node and the option, where it does not see the directory that was marked."""
    if not (Path(folder) / (mark or ".")).exists():
        raise UserError(
            f"{option} {folder}: the node '{socket.gethostname()}' does not see this directory as the driver's does. "
            f"On a cluster, name a directory on a file system that all nodes share, with {option}"
        )
