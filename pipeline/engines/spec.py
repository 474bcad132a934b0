"""Which engine, and how: what the options ``--engine``, ``--model`` and ``--engine-arg`` say, in one frozen record."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from pipeline.errors import UserError

#: Engine arguments that say how many parts a model is split in, each on its own GPUs.
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
#: Fields of a request that a server gets from the recipe or the planner, and the answer store keeps.
_RESERVED = frozenset(
    {"messages", "prompt", "temperature", "top_p", "seed", "max_tokens", "n", "stream"}
    | {"structured_outputs", "response_format"}
)
#: Names of what nobody else may see. Arguments are kept with the run, sent to workers and shown. Names that count tokens
#: are many; ``classifier_from_token`` is an override of a model's configuration.
_SECRET = re.compile(
    "secret|password|passphrase|authorization|credential|api_?key|access_key|^key$|(^|(?<!_from)_|access|auth)token$"
)

#: Arguments of vLLM's engine that are taken for fields of a request now and then.
_OF_AN_ENGINE = frozenset(
    {"max_model_len", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "gpu_memory_utilization"}
    | {"quantization", "dtype", "kv_cache_dtype", "load_format", "hf_overrides", "tokenizer", "trust_remote_code"}
    | {"max_num_seqs", "max_num_batched_tokens", "block_size", "enforce_eager", "cpu_offload_gb"}
    | {"enable_prefix_caching", "enable_chunked_prefill"}
)
#: What who has no vllm is told.
GET_VLLM = (
    "with an NVIDIA GPU: pip install 'multistream-pipeline[vllm]'; without one, the CPU build as in docs/teachers.md"
)
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
    #: ``http``: which checkpoint is served, in the user's words: servers say a name only.
    revision: str | None = None

    @property
    def gpus(self) -> int:
        """GPUs that one engine takes where there are any; 0 for those that hold no model.

        On machines without a GPU nothing is to be asked for: the CPU build runs there.
        """
        if self.kind != "vllm":
            return 0
        args = dict(self.args)
        return math.prod(int(args.get(name, 1)) for name in _PARALLEL)


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
                raise UserError(
                    f"{option}: there is no engine that it could be for; add --engine {FORMS.removeprefix('none, ')}"
                )
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
        return checked(EngineSpec(kind="vllm", **settings))
    if engine.startswith("scripted:"):
        if not (file := engine.removeprefix("scripted:")):
            raise UserError("--engine scripted: which file? Write --engine scripted:FILE")
        if args:
            raise UserError("--engine-arg: a scripted engine takes none")
        return EngineSpec(kind="scripted", where=(file,), **settings)
    if engine.startswith(("http://", "https://")):
        if "@" in engine:  # before anything of it is shown
            raise UserError(
                "--engine: a URL must hold no key or password; set PIPELINE_API_KEY in the environment instead"
            )
        urls = tuple(_checked_url(url.strip()) for url in engine.split(","))
        fields = dict(settings.pop("args"))
        revision = fields.pop("revision", None)  # for us: it is no field of a request
        return checked(EngineSpec(kind="http", where=urls, args=tuple(fields.items()), revision=revision, **settings))
    raise UserError(f"--engine {engine}: no such engine; use {FORMS}")


def _parse_args(args: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    parsed: dict[str, Any] = {}
    for arg in args:
        key, equals, value = arg.partition("=")
        name = key.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            raise UserError(f"--engine-arg {arg}: write KEY=VALUE, such as max_model_len=8192")
        if name in parsed:
            raise UserError(f"--engine-arg {name}: is given twice")
        try:
            # A revision may be all digits.
            parsed[name] = (yaml.load(value, yaml.BaseLoader) or "") if name == "revision" else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--engine-arg {name}: the value is no YAML; put it in quotes") from error
    return tuple(sorted(parsed.items()))


def checked(spec: EngineSpec) -> EngineSpec:
    """The spec, if its arguments may be what they are; for whoever has added some, such as those of a recipe.

    Raises :class:`UserError` naming the argument; no value of a secret is repeated.
    """
    told = () if spec.revision is None else (("revision", spec.revision),)
    for name, value in (*spec.args, *told):
        where = f"--engine-arg {name} (or engine: in the recipe)"
        if name == "model":
            raise UserError(f"{where}: say --model instead")
        if name == "revision" and not (isinstance(value, str) and value.strip()):
            raise UserError(
                f"{where}: must be a name, such as that of a commit, in quotes where it looks like a number"
            )
        if secrets := [inner for inner in (name, *_names(value)) if _SECRET.search(inner.lower().replace("-", "_"))]:
            raise UserError(
                f"{where}: {secrets[0]} is a secret, and arguments are kept with the run; set it in the environment of every "
                "worker instead: HF_TOKEN for the model hub, PIPELINE_API_KEY for a server"
            )
        if spec.kind == "http" and name in _RESERVED:
            raise UserError(
                f"{where}: every request has this field already; leave it out (for how answers are drawn, see teacher: in "
                "the recipe, such as --set teacher.temperature=0.3)"
            )
        if spec.kind == "http" and name in _OF_AN_ENGINE:
            raise UserError(
                f"{where}: that is for whoever starts the server; with one, the arguments are fields that every request gets, "
                "such as top_k=20"
            )
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if spec.kind == "vllm" and name in _PARALLEL and not whole:
            raise UserError(f"{where}: {value} must be a whole number of GPUs, at least 1")
    return spec


def request_revision(spec: EngineSpec) -> str | None:
    """What tells a served model from another of its name: which one the user says it is, and the fields that every
    request to it has beyond the usual."""
    told = [spec.revision] if spec.revision is not None else []
    told += [json.dumps(dict(spec.args), sort_keys=True, default=str)] if spec.args else []
    return " ".join(told) or None


def _names(value: Any) -> Iterator[str]:
    """All names inside a nested argument."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield str(name)
            yield from _names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(inner)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"--engine {url}: no URL ({error})") from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UserError(f"--engine {url}: write http://HOST:PORT/v1")
    return url.rstrip("/").removesuffix("/chat/completions").rstrip("/")
