"""One at a time, of all processes on all machines that share a directory."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

#: Seconds between two looks whether it is one's turn.
_LOOK = 0.25


@asynccontextmanager
async def turn(path: Path) -> AsyncIterator[None]:
    """Wait until nobody else is in a turn with the file ``path``, which is made where it is missing.

    Who dies gives way. Where nothing may be written, or the file system has no locks, nobody waits.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield
        return
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(_LOOK)
                continue
            except OSError:
                break
            break
        yield
    finally:
        os.close(handle)
