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
    #: ``in_flight`` integrated over time, added up over processes: request-seconds.
    flight_seconds: float = 0.0

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))


class Meter:
    """Counters while they run."""

    def __init__(self) -> None:
        self.now = Counters()
        self._looked = time.monotonic()

    def begin(self) -> None:
        """An engine begins to work on a request."""
        self._pass()
        self.now.in_flight += 1

    def end(self) -> None:
        """It has answered, or failed."""
        self._pass()
        self.now.in_flight -= 1

    def snapshot(self) -> Counters:
        """The counters as they are now; a copy. Other threads than that of the engine may ask."""
        now, passed = msgspec.structs.replace(self.now), time.monotonic() - self._looked
        now.busy_seconds += passed * (now.in_flight > 0)
        now.flight_seconds += passed * now.in_flight
        return now

    def _pass(self) -> None:
        """Add the time since the last look, in which as many were in flight as are now."""
        before, self._looked = self._looked, time.monotonic()
        self.now.busy_seconds += (self._looked - before) * (self.now.in_flight > 0)
        self.now.flight_seconds += (self._looked - before) * self.now.in_flight
