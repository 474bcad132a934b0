"""What an engine is: something that answers requests, many at a time. One small protocol, three implementations.

``vllm`` holds a model in this process, ``http`` talks to an OpenAI-compatible server, ``scripted`` answers from a file
or a function. Who asks knows this module alone.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from pipeline.errors import UserError


class Message(msgspec.Struct, frozen=True, gc=False):
    """One chat message to or from a model."""

    #: ``system``, ``user`` or ``assistant``.
    role: str
    content: str


class Sampling(msgspec.Struct, frozen=True, gc=False):
    """How an answer is drawn. All of it is part of the request's key."""

    temperature: float = 0.0
    top_p: float = 1.0
    #: The most tokens that an answer may have.
    max_tokens: int = 1024
    seed: int = 0


class Constraint(msgspec.Struct, frozen=True):
    """What an answer must look like; the engine cannot write anything else."""

    kind: Literal["json", "regex", "grammar"]
    #: A JSON Schema for ``json``, an expression for ``regex``, an EBNF grammar (xgrammar's dialect) for ``grammar``.
    value: Any


class Request(msgspec.Struct, frozen=True):
    """One question to a model: messages, or the token ids of a prompt that is rendered already (never both)."""

    messages: tuple[Message, ...] = ()
    tokens: tuple[int, ...] = ()
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None
    #: Arguments of the model's chat template, such as ``{"enable_thinking": False}``.
    template: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a model said."""

    text: str
    #: ``stop`` is the only good one; ``length``, ``content_filter``, ``abort`` … are not accepted.
    finish_reason: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    #: Prompt tokens that the engine had in its prefix cache.
    cached_tokens: int = 0
    #: Whether the request's constraint was left out, because the engine knows none of that kind.
    unconstrained: bool = False


class Model(NamedTuple):
    """What answers: part of every request's key."""

    name: str
    #: Whatever else tells one model from another of that name: a revision, a quantisation. None where none is known.
    revision: str | None = None
    #: The most tokens of prompt and answer together; None where the engine does not say.
    context: int | None = None


class Engine(Protocol):
    """Answers requests. Everything happens in one event loop; ``ask`` is called many times at once."""

    @property
    def trouble(self) -> str:
        """Why nothing has been answered for a while, in words for the user; empty as long as all is well."""
        ...

    async def start(self) -> Model:
        """Make ready, or ready again after :class:`EngineLost`, and say which model answers.

        Raises :class:`pipeline.errors.UserError` where it can never be: one clear sentence.
        """
        ...

    async def ask(self, request: Request) -> Answer:
        """Answer one request.

        Raises :class:`RequestRefused` where this request can never be answered, and :class:`EngineLost` where the engine
        is gone: ``start`` replaces it, and the request may be asked again.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; may be called twice."""
        ...


class EngineLost(Exception):
    """The engine has died, hangs or cannot be reached, after whatever retries it makes on its own."""


class NoServer(UserError):
    """No server answers at the addresses given, and none has so far."""


class RequestRefused(Exception):
    """The engine will never answer this request (a prompt longer than the context, a filter); says why."""
