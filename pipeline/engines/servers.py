"""Several servers that serve one model: who is asked next, and who is left alone for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

#: Seconds that a server is left alone after its first failure; doubled with every further one in a row.
_FIRST_REST = 1.0
_LONGEST_REST = 60.0
#: Seconds without any answer that are worth a word.
_WHILE = 5.0


class Server:
    """One server and what is known of it."""

    __slots__ = ("closed_until", "failures", "in_flight", "rests_until", "trouble", "url")

    def __init__(self, url: str) -> None:
        self.url = url
        self.in_flight = 0
        #: In a row.
        self.failures = 0
        #: Why it has not answered the last time; empty where it has.
        self.trouble = ""
        #: On the clock of the balancer: asked only where no other is awake.
        self.rests_until = 0.0
        #: Not asked at all: it said so itself.
        self.closed_until = 0.0


class Balancer:
    """Chooses the server with the fewest requests in flight, among those that do not rest."""

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._servers = [Server(url) for url in urls]
        self._clock = clock
        self._turn = 0
        self._heard = clock()

    def now(self) -> float:
        """The balancer's time, in seconds."""
        return self._clock()

    def choose(self) -> Server:
        """The server to ask. Where all rest, the one that has rested most."""
        now = self._clock()
        self._turn += 1
        order = self._servers[self._turn % len(self._servers) :] + self._servers[: self._turn % len(self._servers)]
        awake = [server for server in order if server.rests_until <= now]
        if awake:
            return min(awake, key=lambda server: server.in_flight)
        return min(order, key=lambda server: server.rests_until)

    def has_awake(self) -> bool:
        """Whether any server is not resting."""
        now = self._clock()
        return any(server.rests_until <= now for server in self._servers)

    def seconds_closed(self, server: Server) -> float:
        """How long the server still wants to be left alone."""
        return max(0.0, server.closed_until - self._clock())

    def silence_since(self, began: float) -> float:
        """For how many seconds no server has answered anything, counted from ``began`` at the earliest."""
        return self._clock() - max(began, self._heard)

    def trouble(self) -> str:
        """Why nobody has answered for a while; empty where some server does."""
        if self._clock() - self._heard < _WHILE or not all(server.trouble for server in self._servers):
            return ""
        return "; ".join(f"{server.url}: {server.trouble}" for server in self._servers)

    def succeeded(self, server: Server) -> None:
        """It answers: whatever went wrong before is forgotten."""
        server.failures = 0
        server.trouble = ""
        server.rests_until = 0.0
        self._heard = self._clock()

    def failed(self, server: Server, why: str, pause: float = 0.0) -> None:
        """It did not answer: let it rest, the longer the more often; ``pause`` seconds where it said so itself."""
        server.failures += 1
        server.trouble = why
        self._rest(server, min(_LONGEST_REST, _FIRST_REST * 2 ** min(server.failures - 1, 16)), pause)

    def refused(self, server: Server, why: str, pause: float = 0.0) -> None:
        """It is there, but has too much to do."""
        server.trouble = why
        self._rest(server, _FIRST_REST, pause)

    def _rest(self, server: Server, seconds: float, pause: float) -> None:
        now = self._clock()
        server.rests_until = max(server.rests_until, now + seconds, now + pause)
        server.closed_until = max(server.closed_until, now + pause)
