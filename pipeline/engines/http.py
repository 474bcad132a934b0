"""An engine behind an OpenAI-compatible server: ``vllm serve`` and whatever else speaks ``/v1/chat/completions``.

Several servers of one model are balanced. What may go well the next time is tried again: transport errors, 408, 409,
425, 429 (after the pause that the server asks for), 5xx, and bodies that make no sense. The key comes from the
environment (``PIPELINE_API_KEY``, else ``OPENAI_API_KEY``) and is never shown.
"""

from __future__ import annotations

import asyncio
import os
import platform
import random
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec

from pipeline.engines.protocol import Answer, Constraint, EngineLost, Model, NoServer, Request, RequestRefused
from pipeline.engines.servers import Balancer, Server
from pipeline.engines.spec import EngineSpec, request_revision
from pipeline.errors import UserError

#: How a server is told what an answer must look like. Older names of vLLM (``guided_json`` …) are accepted by it with
#: status 200 and do nothing.
Dialect = Literal["vllm", "openai"]

_CONNECT_SECONDS = 10.0
#: To say which models there are takes a server no time, unless it hangs.
_LISTING_SECONDS = 30.0
#: A request that no server answered in time is sent once more, not as often as one that failed at once.
_TIMEOUTS = 2
_MOST_BYTES = 64 << 20
_LONGEST_PAUSE = 300.0
_AGAIN = frozenset({408, 409, 425, 429})


class HttpEngine:
    """Asks servers. Made by :func:`pipeline.engines.build.build_engine`."""

    def __init__(
        self,
        spec: EngineSpec,
        *,
        tries: int = 8,
        first_wait: float = 0.5,
        longest_wait: float = 30.0,
        longest_silence: float = 900.0,
    ) -> None:
        """``tries``: how often one request is sent before the engine counts as lost.

        ``first_wait``, ``longest_wait``: seconds; before the n-th try again a request waits somewhere between 0 and
        ``first_wait · 2ⁿ``, at most ``longest_wait``, so that many requests do not come back all at once.
        ``longest_silence``: seconds for which a server may ask again and again to be left alone, while none answers.
        """
        self._spec = spec
        self._tries = tries
        self._first_wait, self._longest_wait, self._longest_silence = first_wait, longest_wait, longest_silence
        self._listing = aiohttp.ClientTimeout(total=min(spec.timeout, _LISTING_SECONDS), sock_connect=_CONNECT_SECONDS)
        self._extra = dict(spec.args)
        self._balancer = Balancer(spec.where)
        self._room = asyncio.Semaphore(spec.concurrency)
        self._key = (os.environ.get("PIPELINE_API_KEY") or os.environ.get("OPENAI_API_KEY") or "").strip()
        self._jitter = random.Random()
        self._session: aiohttp.ClientSession | None = None
        self._model: Model | None = None
        self._dialects: list[Dialect] = ["vllm", "openai"]

    @property
    def trouble(self) -> str:
        """Why no server has answered for a while."""
        return self._balancer.trouble()

    async def start(self) -> Model:
        """Connect, and find out which model the servers serve.

        Raises :class:`UserError` where no server can ever answer; :class:`EngineLost` where they did once.
        """
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._spec.timeout, sock_connect=_CONNECT_SECONDS),
                connector=aiohttp.TCPConnector(limit=0),  # the engine itself bounds what is in flight
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            )
        try:
            self._model = await self._find_model(self._session)
        except BaseException:
            if self._model is None:  # else other requests still wait in this session for their next try
                await self.close()
            raise
        return self._model

    async def ask(self, request: Request) -> Answer:
        """One answer. See :class:`pipeline.engines.protocol.Engine`."""
        if self._session is None or self._model is None:
            raise EngineLost("the engine is not started")
        path = "/completions" if request.tokens else "/chat/completions"
        body = self._body(request, self._model)
        async with self._room:
            return await self._persist(self._session, path, body)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def other_dialect(self) -> bool:
        """Say constraints the next way there is; False where all have been tried. For the probe."""
        if len(self._dialects) == 1:
            return False
        self._dialects.pop(0)
        return True

    async def _find_model(self, session: aiohttp.ClientSession) -> Model:
        urls, known = self._spec.where, self._model
        listings = await asyncio.gather(*(self._list_models(session, url) for url in urls))
        answered = {url: found for url, found in zip(urls, listings, strict=True) if isinstance(found, list)}
        if not answered:
            reasons = "; ".join(f"{url}: {why}" for url, why in zip(urls, listings, strict=True))
            if known is not None:
                raise EngineLost(f"no server answers any more ({reasons})")
            raise NoServer(f"--engine: no server answers ({reasons}); is it running, and is the address right?")
        name = self._spec.model or _only_name(answered)
        if known is not None and name != known.name:
            raise UserError(f"--engine: the server now has {name} instead of {known.name}; say which with --model")
        cards = [card for url, listed in answered.items() if (card := _find_card(url, listed, name))]
        if known is None and not all(card.owned_by == "vllm" for card in cards):
            self._dialects.reverse()
        revision = request_revision(self._spec)
        return Model(name, revision, min((card.max_model_len for card in cards if card.max_model_len), default=None))

    async def _list_models(self, session: aiohttp.ClientSession, url: str) -> list[_Card] | str:
        """The models of one server, or why it cannot say."""
        why = ""
        attempts = timeouts = 0
        while attempts < (self._tries if self._model else 3) and timeouts < _TIMEOUTS:
            if attempts:
                await self._wait(attempts)
            attempts += 1
            try:
                async with session.get(
                    f"{url}/models", allow_redirects=False, proxy=_proxy(url), timeout=self._listing
                ) as response:
                    body = await _read(response)
                    status = response.status
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why = self._describe(error)
                timeouts += isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
                continue
            if status == 200:
                try:
                    return msgspec.json.decode(body, type=_Cards).data
                except (msgspec.DecodeError, RecursionError):
                    raise UserError(
                        f"--engine {url}: answers, but is no OpenAI-compatible API; does the address end in /v1?"
                    ) from None
            message = self._message(status, body)
            if status in (404, 405, 501) and self._spec.model:
                return [_Card(id=self._spec.model)]  # some servers do not list what they have
            _raise_if_user_can_help(url, status, message)
            why = message
        return why

    def _body(self, request: Request, model: Model) -> bytes:
        sampling = request.sampling
        body: dict[str, Any] = {"model": model.name}
        if request.tokens:
            body["prompt"] = request.tokens
        else:
            body["messages"] = request.messages
        body |= {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
        }
        if request.template:
            body["chat_template_kwargs"] = request.template
        if request.constraint is not None:
            body |= _say_constraint(request.constraint, self._dialects[0])
        body |= self._extra
        return msgspec.json.encode({name: value for name, value in body.items() if value is not None})

    async def _persist(self, session: aiohttp.ClientSession, path: str, body: bytes) -> Answer:
        """Send until there is an answer, as long as there is hope. A server that has too much to do has not failed."""
        began = self._balancer.now()
        failures = waits = timeouts = 0
        why = ""
        while failures < self._tries and timeouts < _TIMEOUTS:
            if why and not self._balancer.has_awake():
                waits += 1
                await self._wait(waits)
            server = self._balancer.choose()
            while closed := self._balancer.seconds_closed(server):
                self._check_silence(server, began)
                await asyncio.sleep(closed + self._jitter.uniform(0.0, self._first_wait))
                server = self._balancer.choose()
            server.in_flight += 1
            try:
                answer = await self._send(session, server, path, body)
            except _Failed as failed:
                why = f"{server.url}: {failed}"
                if failed.server_is_there:
                    self._balancer.refused(server, str(failed), failed.pause)
                    self._check_silence(server, began)
                else:
                    self._balancer.failed(server, str(failed), failed.pause)
                    failures += 1
                    timeouts += failed.timed_out
            else:
                self._balancer.succeeded(server)
                return answer
            finally:
                server.in_flight -= 1
        raise EngineLost(f"{why} (sent {failures} times)")

    def _check_silence(self, server: Server, began: float) -> None:
        """Raise :class:`EngineLost` where a server has asked to be left alone for too long, and no other answers."""
        silence = self._balancer.silence_since(began)
        if silence > self._longest_silence:
            raise EngineLost(f"{server.url}: asks to be left alone, and has answered nothing for {silence:.0f} s")

    async def _wait(self, times: int) -> None:
        longest = min(self._longest_wait, self._first_wait * 2 ** min(times, 16))
        await asyncio.sleep(self._jitter.uniform(0.0, longest))

    async def _send(self, session: aiohttp.ClientSession, server: Server, path: str, body: bytes) -> Answer:
        """Send once. Raises :class:`_Failed` where it may go well the next time."""
        headers, proxy = {"Content-Type": "application/json"}, _proxy(server.url)
        if session.closed:
            raise EngineLost("the engine is closed")
        try:
            async with session.post(
                server.url + path, data=body, headers=headers, allow_redirects=False, proxy=proxy
            ) as response:
                said = await _read(response)
                status, pause = response.status, _pause(response.headers.get("Retry-After"))
        except aiohttp.ConnectionTimeoutError:
            raise _Failed(f"no connection within {_CONNECT_SECONDS:g} s") from None
        except TimeoutError:
            raise _Failed(f"no answer within {self._spec.timeout:g} s", timed_out=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Failed(self._describe(error)) from None
        if status == 200:
            return _parse(said)
        message = self._message(status, said)
        if status in _AGAIN or status >= 500:
            raise _Failed(message, pause, server_is_there=status in _AGAIN)
        _raise_if_user_can_help(server.url, status, message)
        raise RequestRefused(message)

    def _message(self, status: int, body: bytes) -> str:
        """What a server says about an error, short and without the key."""
        text = body.decode("utf-8", "replace")
        with suppress(msgspec.DecodeError, RecursionError):
            text = _find_message(msgspec.json.decode(body)) or text
        # hidden first: of a key that is cut in two, the first half would be shown
        return f"status {status}: {' '.join(self._hide(text).split())[:500] or 'no reason given'}"

    def _describe(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return "no answer in time"
        if isinstance(error, aiohttp.ClientResponseError):  # its text names the address, a proxy's password included
            return self._hide(f"status {error.status}: {error.message}")
        return self._hide(str(error) or type(error).__name__)

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _Failed(Exception):
    """It did not go well this time."""

    def __init__(self, why: str, pause: float = 0.0, *, server_is_there: bool = False, timed_out: bool = False) -> None:
        super().__init__(why)
        #: Seconds that the server asks for.
        self.pause = pause
        self.server_is_there = server_is_there
        self.timed_out = timed_out


# What servers send, as far as it is used. Anything else in it is ignored; a wrong type is a failure like any other.
class _Card(msgspec.Struct):
    id: str
    owned_by: str | None = None
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


class _Said(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    message: _Said | None = None
    text: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


def _parse(body: bytes) -> Answer:
    try:
        completion = msgspec.json.decode(body, type=_Completion)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Failed(f"status 200, but the body makes no sense: {error}") from None
    if len(completion.choices) != 1:
        raise _Failed(f"status 200, but {len(completion.choices)} answers instead of one")
    choice, usage = completion.choices[0], completion.usage or _Usage()
    text = choice.message.content if choice.message else choice.text
    details = usage.prompt_tokens_details or _Details()
    return Answer(
        text or "",
        choice.finish_reason or "unknown",
        prompt_tokens=usage.prompt_tokens or 0,
        output_tokens=usage.completion_tokens or 0,
        cached_tokens=details.cached_tokens or 0,
    )


def _say_constraint(constraint: Constraint, dialect: Dialect) -> dict[str, Any]:
    if dialect == "vllm":
        return {"structured_outputs": {constraint.kind: constraint.value}}
    if constraint.kind != "json":
        raise RequestRefused(f"this server takes no {constraint.kind} as a constraint, only a JSON Schema")
    schema = {"name": "answer", "schema": constraint.value, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _only_name(answered: dict[str, list[_Card]]) -> str:
    """The one model that all servers have."""
    shared = set.intersection(*({card.id for card in cards} for cards in answered.values()))
    if len(shared) == 1:
        return shared.pop()
    seen = sorted({card.id for cards in answered.values() for card in cards})
    raise UserError(
        f"--engine: which model? Add --model with one that every server has; seen: {', '.join(seen) or 'none'}"
    )


def _find_card(url: str, cards: Sequence[_Card], name: str) -> _Card | None:
    for card in cards:
        if card.id == name:
            return card
    if cards:
        raise UserError(f"--model {name}: {url} does not have it; it has {', '.join(card.id for card in cards[:20])}")
    return None


def _raise_if_user_can_help(url: str, status: int, message: str) -> None:
    if status in (401, 403):
        raise UserError(
            f"--engine {url}: {message}; set PIPELINE_API_KEY in the environment on this node ({platform.node()}) to a key "
            "that is valid there; without it, OPENAI_API_KEY is used"
        )
    if status == 402:
        raise UserError(f"--engine {url}: {message}; the account behind the key has nothing left")
    if status in (404, 405):
        raise UserError(f"--engine {url}: {message}; does the address end in /v1, and does the server have --model?")
    if 300 <= status < 400:
        raise UserError(f"--engine {url}: {message}; the server points elsewhere: give that address")


def _find_message(value: Any) -> str | None:
    """The reason in an error body: ``{"error": {"message": …}}`` and its relatives."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        for key in ("message", "error", "detail"):
            if found := _find_message(value.get(key)):
                return found
    return None


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a server; None for none.

    aiohttp could look for it, but would then take keys out of ``~/.netrc`` too, and fails where there are two.
    """
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxy = getproxies().get(parts.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _pause(header: str | None) -> float:
    """Seconds that a ``Retry-After`` header asks for: a number or a date; 0 without one, or one that makes no sense."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            until = parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        if until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        seconds = (until - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_PAUSE) if seconds == seconds else 0.0


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body. A server that never stops sending is no server."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > _MOST_BYTES:
            raise aiohttp.ClientPayloadError(f"a body of more than {_MOST_BYTES >> 20} MiB")
    return bytes(body)
