"""What asking has cost so far. Goes to progress lines and ``run.json``, into nothing that is hashed."""

from __future__ import annotations

import time

import msgspec


class Counters(msgspec.Struct, gc=False):
    """Sums since the start of one process; those of several are added with ``+``."""

    #: Requests that an engine has answered.
    asked: int = 0
    #: Requests that cost nothing: kept in the store, or the same as one that was under way.
    stored: int = 0
    #: Questions of planners that got a valid answer, and that got none.
    accepted: int = 0
    rejected: int = 0
    #: Those of ``asked`` that were not the first attempt.
    retried: int = 0
    #: Tokens of the requests that an engine answered; ``cached_tokens`` is part of ``prompt_tokens``.
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    #: The part of ``output_tokens`` that was accepted.
    accepted_tokens: int = 0
    #: Requests that an engine is working on now.
    in_flight: int = 0
    #: Time during which it worked on at least one, added up over processes.
    busy_seconds: float = 0.0
    #: Times that an engine was lost and started again.
    restarts: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))


class Meter:
    """Counters while they run."""

    def __init__(self) -> None:
        self.now = Counters()
        self._busy_since = 0.0

    def begin(self) -> None:
        """An engine begins to work on a request."""
        if self.now.in_flight == 0:
            self._busy_since = time.monotonic()
        self.now.in_flight += 1

    def end(self) -> None:
        """It has answered, or failed."""
        self.now.in_flight -= 1
        if self.now.in_flight == 0:
            self.now.busy_seconds += time.monotonic() - self._busy_since

    def snapshot(self) -> Counters:
        """The counters as they are now; a copy."""
        busy = self.now.busy_seconds
        if self.now.in_flight:
            busy += time.monotonic() - self._busy_since
        return msgspec.structs.replace(self.now, busy_seconds=busy)
