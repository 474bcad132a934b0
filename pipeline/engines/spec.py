"""Which engine, and how: what the options ``--engine``, ``--model`` and ``--engine-arg`` say, in one frozen record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from pipeline.errors import UserError

FORMS = "none, vllm, scripted:FILE or http://HOST:PORT/v1 (several with commas)"


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine that can be built anywhere: it pickles, and holds no secret (a key comes from the environment)."""

    kind: Literal["vllm", "http", "scripted"]
    #: ``http``: base URLs, each ending in ``/v1`` or wherever the server keeps its API. ``scripted``: the file.
    where: tuple[str, ...] = ()
    #: ``vllm``: a hub name or a directory. ``http``: the name that the server serves it under; None: the only one.
    model: str | None = None
    #: ``vllm``: engine arguments. ``http``: further fields of every request. As given, by name; values may be nested.
    args: tuple[tuple[str, Any], ...] = ()
    #: The most requests that one engine has in flight; more wait their turn.
    concurrency: int = 128
    #: Seconds after which a request, or an engine that has answered nothing meanwhile, counts as lost.
    timeout: float = 600.0

    @property
    def gpus(self) -> int:
        """GPUs that one engine takes where there are any; 0 for those that hold no model.

        On machines without a GPU nothing is to be asked for: the CPU build runs there.
        """
        if self.kind != "vllm":
            return 0
        args = dict(self.args)
        return int(args.get("tensor_parallel_size", 1)) * int(args.get("pipeline_parallel_size", 1))


def parse_spec(
    engine: str,
    model: str | None = None,
    args: Sequence[str] = (),
    concurrency: int | None = None,
    timeout: float | None = None,
) -> EngineSpec | None:
    """The engine that the options name; None for ``none``.

    ``args``: ``KEY=VALUE`` each, the value read as YAML, ``-`` and ``_`` in keys alike.
    Raises :class:`UserError` naming the option.
    """
    if engine == "none":
        for option, given in (("--model", model), ("--engine-arg", args)):
            if given:
                raise UserError(f"{option}: there is no engine that it could be for; add --engine {FORMS}")
        return None
    for option, number in (("--concurrency", concurrency), ("--engine-timeout", timeout)):
        if number is not None and number <= 0:
            raise UserError(f"{option} {number}: must be more than 0")
    settings: dict[str, Any] = {"model": model, "args": _parse_args(args)}
    if concurrency is not None:
        settings["concurrency"] = concurrency
    if timeout is not None:
        settings["timeout"] = timeout
    if engine == "vllm":
        if not model:
            raise UserError("--engine vllm: which model? Add --model with a hub name or a directory")
        return _checked(EngineSpec(kind="vllm", **settings))
    if engine.startswith("scripted:"):
        if not (file := engine.removeprefix("scripted:")):
            raise UserError("--engine scripted: which file? Write --engine scripted:FILE")
        if args:
            raise UserError("--engine-arg: a scripted engine takes none")
        return EngineSpec(kind="scripted", where=(file,), **settings)
    if engine.startswith(("http://", "https://")):
        return EngineSpec(kind="http", where=tuple(_checked_url(url.strip()) for url in engine.split(",")), **settings)
    raise UserError(f"--engine {engine}: no such engine; use {FORMS}")


def _parse_args(args: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    parsed: dict[str, Any] = {}
    for arg in args:
        key, equals, value = arg.partition("=")
        name = key.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            raise UserError(f"--engine-arg {arg}: write KEY=VALUE, such as max_model_len=8192")
        if name in parsed:
            raise UserError(f"--engine-arg {arg}: {name} is given twice")
        try:
            parsed[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--engine-arg {arg}: the value is no YAML; put it in quotes") from error
    return tuple(sorted(parsed.items()))


def _checked(spec: EngineSpec) -> EngineSpec:
    for name, value in spec.args:
        if name == "model":
            raise UserError("--engine-arg model: say --model instead")
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if name in ("tensor_parallel_size", "pipeline_parallel_size") and not whole:
            raise UserError(f"--engine-arg {name}={value}: must be a whole number of GPUs, at least 1")
    return spec


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"--engine {url}: no URL ({error})") from error
    if parts.username or parts.password:
        raise UserError("--engine: a URL must hold no key or password; set PIPELINE_API_KEY in the environment instead")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UserError(f"--engine {url}: write http://HOST:PORT/v1")
    return url.rstrip("/").removesuffix("/chat/completions").rstrip("/")
