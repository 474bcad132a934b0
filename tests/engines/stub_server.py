"""A real HTTP server that speaks ``/v1/chat/completions`` without a model, and misbehaves on demand.

    with StubServer(lambda body: "an answer") as server:
        engine = build_engine(parse_spec(server.url))

It runs in a thread of its own, so that tests in one process and commands in another can ask it alike. Faults come from
a function of the request and of how often this very request was seen, so they do not depend on the order in which
requests arrive.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Self

import msgspec
from aiohttp import web

Body = dict[str, Any]
#: The text of an answer, or a whole body of one.
Respond = Callable[[Body], str | Body]


class Fault(msgspec.Struct, frozen=True):
    """What goes wrong with one request.

    ``status`` (of that ``status``, with ``retry_after`` if any), ``drop`` (the connection ends), ``hang`` (no answer
    ever comes), ``garbage`` (a body that is no JSON), ``nonsense`` (JSON of another shape), ``truncate`` (half of the
    answer, finish reason ``length``), ``slow`` (the answer, ``seconds`` later).
    """

    kind: str
    status: int = 500
    retry_after: str | None = None
    message: str = "out of order"
    seconds: float = 0.0


#: Request and how often it was seen before, to what goes wrong.
Faults = Callable[[Body, int], Fault | None]


def random_faults(share: float, seed: int = 0, kinds: Sequence[Fault] | None = None) -> Faults:
    """Faults for a share of all requests, each time drawn anew from the request, how often it came, and ``seed``."""
    chosen = kinds or (
        Fault("status", status=429, retry_after="0"),
        Fault("status", status=500),
        Fault("drop"),
        Fault("garbage"),
        Fault("nonsense"),
    )

    def draw(body: Body, seen: int) -> Fault | None:
        digest = sha256(msgspec.json.encode([seed, seen, body], order="sorted")).digest()
        if int.from_bytes(digest[:4], "big") / 2**32 >= share:
            return None
        return chosen[int.from_bytes(digest[4:8], "big") % len(chosen)]

    return draw


def echo(body: Body) -> str:
    """An answer that depends on the whole request and on nothing else."""
    return "echo " + sha256(msgspec.json.encode(body, order="sorted")).hexdigest()[:12]


class StubServer:
    """Serves until the ``with`` block ends. ``kill`` and ``revive`` are for the meantime."""

    def __init__(
        self,
        respond: Respond = echo,
        faults: Faults | None = None,
        *,
        models: Sequence[str] = ("stub",),
        owner: str = "vllm",
        context: int | None = 8192,
        key: str | None = None,
    ) -> None:
        self._respond, self._faults = respond, faults or (lambda _body, _seen: None)
        self._models, self._owner, self._context, self._key = list(models), owner, context, key
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stub-server", daemon=True)
        self._runner: web.AppRunner | None = None
        self._ended = asyncio.Event()
        self._connections: set[asyncio.Transport] = set()
        self._port = 0
        self._seen: dict[bytes, int] = {}
        #: Every body asked, in the order of arrival, faults included.
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = 0
        self.most_in_flight = 0

    @property
    def url(self) -> str:
        """What ``--engine`` takes."""
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        self.revive()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def kill(self) -> None:
        """Close the port and every connection, answers under way included."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)

    def revive(self) -> None:
        """Serve again, at the same address."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> None:
        self._ended.clear()
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        assert site._server is not None
        self._port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def _stop(self) -> None:
        runner, self._runner = self._runner, None
        self._ended.set()
        for connection in self._connections:
            connection.abort()
        if runner is not None:
            await runner.cleanup()

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self._key is not None and request.headers.get("Authorization") != f"Bearer {self._key}":
            given = request.headers.get("Authorization", "none")
            return _error(401, f"invalid key: {given.removeprefix('Bearer ')}")
        return None

    async def _list(self, request: web.Request) -> web.Response:
        cards = [{"id": name, "owned_by": self._owner, "max_model_len": self._context} for name in self._models]
        return self._refusal(request) or web.json_response({"object": "list", "data": cards})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._refusal(request):
            return refusal
        body = msgspec.json.decode(await request.read())
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if body.get("model") not in self._models:
            return _error(404, f"The model `{body.get('model')}` does not exist.")
        key = msgspec.json.encode(body, order="sorted")
        seen = self._seen[key] = self._seen.get(key, -1) + 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        connection = request.transport
        assert connection is not None
        self._connections.add(connection)
        try:
            return await self._answer(request, body, self._faults(body, seen))
        finally:
            self.in_flight -= 1
            self._connections.discard(connection)

    async def _answer(self, request: web.Request, body: Body, fault: Fault | None) -> web.StreamResponse:
        match fault:
            case Fault("status"):
                headers = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
                return _error(fault.status, fault.message, headers)
            case Fault("drop"):
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case Fault("hang"):
                await self._ended.wait()
            case Fault("garbage"):
                return web.Response(body=b'{"choices": [{"mess\xff\x00', content_type="application/json")
            case Fault("nonsense"):
                return web.json_response({"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]})
            case Fault("slow"):
                await asyncio.sleep(fault.seconds)
        said = self._respond(body)
        if isinstance(said, dict):
            return web.json_response(said)
        reason = "stop"
        if fault is not None and fault.kind == "truncate":
            said, reason = said[: len(said) // 2], "length"
        chat = "messages" in body
        words = (
            sum(len(str(message["content"]).split()) for message in body["messages"]) if chat else len(body["prompt"])
        )
        text = {"message": {"role": "assistant", "content": said}} if chat else {"text": said}
        return web.json_response(
            {
                "object": "chat.completion" if chat else "text_completion",
                "model": body["model"],
                "choices": [{"index": 0, "finish_reason": reason, **text}],
                "usage": {
                    "prompt_tokens": words,
                    "completion_tokens": len(said.split()),
                    "prompt_tokens_details": {"cached_tokens": words // 2},
                },
            }
        )


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status, headers=headers)
