"""Making things in a thread while the ones before them are used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """The iterator's end, or the exception that ended it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Prefetched(Generic[T]):
    """What ``source`` gives, at most ``ahead`` things before they are asked for. An exception there is raised here.

    :meth:`close` ends the thread; it is called at the end, and by ``with contextlib.closing``.
    """

    def __init__(self, source: Iterator[T], ahead: int) -> None:
        self._ready: queue.Queue[T | _End] = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(source,), name="loader", daemon=True)
        self._thread.start()

    def _work(self, source: Iterator[T]) -> None:
        try:
            for thing in source:
                if not self._put(thing):
                    return
        except BaseException as error:  # noqa: BLE001 — whatever it is, it is raised where the things are used
            self._put(_End(error))
        else:
            self._put(_End())

    def _put(self, thing: T | _End) -> bool:
        """False where nobody wants it any more."""
        while not self._closed.is_set():
            try:
                self._ready.put(thing, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[T]:
        while True:
            thing = self._ready.get()
            if isinstance(thing, _End):
                if thing.error is not None:
                    raise thing.error
                return
            yield thing

    def close(self) -> None:
        """Stop working ahead, and wait until that has ended."""
        self._closed.set()
        self._thread.join()
