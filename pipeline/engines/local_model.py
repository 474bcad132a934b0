"""Which model an engine will load, found out without loading it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.engines.protocol import Model
from pipeline.engines.spec import EngineSpec
from pipeline.engines.weights import describe_directory
from pipeline.errors import UserError

#: Engine arguments that make another model of the same weights, or other weights of the same name; the others only say
#: how fast, and where. How answers are drawn and what they may be is part of every request.
_ANOTHER_MODEL = (
    "additional_config",
    "code_revision",
    "config_format",
    "default_mm_loras",
    "diffusion_config",
    "dtype",
    "generation_config",
    "hf_config_path",
    "hf_overrides",
    "ignore_patterns",
    "kv_cache_dtype",
    "kv_cache_dtype_skip_layers",
    "load_format",
    "logits_processors",
    "mamba_cache_dtype",
    "mamba_ssm_cache_dtype",
    "model_class_overrides",
    "model_impl",
    "model_loader_extra_config",
    "model_weights",
    "override_generation_config",
    "quantization",
    "quantization_config",
    "reasoning_config",
    "reasoning_parser",
    "tokenizer",
    "tokenizer_mode",
    "tokenizer_revision",
    "trust_remote_code",
    "watermark_config",
)
#: Engine arguments that may name a directory, which then counts by its content.
_DIRECTORIES = frozenset({"generation_config", "hf_config_path", "model_weights", "tokenizer"})
_COMMIT = re.compile("[0-9a-f]{40}")


def model_of(spec: EngineSpec) -> Model:
    """Name and revision of the model that a ``vllm`` engine loads; its context is known once it is loaded.

    A directory goes by its last name and its content, a hub model by its name and commit. Engine arguments that change
    what the model computes are part of the revision, directories among them by their content too.
    Raises :class:`UserError` where a directory does not exist.
    """
    assert spec.model is not None
    path, args = Path(spec.model).expanduser(), dict(spec.args)
    revision: str | None
    if path.is_dir():
        name, revision = path.resolve().name, describe_directory(path)
    elif _is_local(spec.model):
        raise UserError(f"--model {spec.model}: no such directory; it must be there on every machine that takes part")
    else:
        name, revision = spec.model, find_commit(spec.model, args.get("revision"))
    details = [] if revision is None else [revision]
    details += [f"{key}={_describe_argument(key, args[key])}" for key in _ANOTHER_MODEL if key in args]
    return Model(name, " ".join(details) or None)


def _describe_argument(key: str, value: Any) -> str:
    if key in _DIRECTORIES and isinstance(value, str) and (path := Path(value)).is_dir():
        return describe_directory(path)
    return json.dumps(value, sort_keys=True, default=str)


def pinned(spec: EngineSpec, notice: Callable[[str], None] = lambda _: None, here: bool = False) -> EngineSpec:
    """The spec with the commit that a hub model is at now, so that every engine that is built from it loads that one.

    A directory, and a model of which no commit is known here, stay as they are; so does one whose tokenizer or
    configuration comes from elsewhere, where vLLM would look for the same commit. ``notice`` is told of a hub model that is
    not pinned, and what follows.
    Raises :class:`UserError` where engines are loaded ``here``, on this machine, and there is no such model.
    """
    assert spec.model is not None
    if _is_local(spec.model):
        return spec
    args = dict(spec.args)
    given = args.get("revision")
    known = isinstance(given, str) and _COMMIT.fullmatch(given)
    if "hf_config_path" in args or ("tokenizer" in args and "tokenizer_revision" not in args):
        if not known:
            notice(
                f"--model {spec.model}: not pinned to a commit, for its configuration or tokenizer comes from elsewhere: "
                f"should it change on the hub while this runs, workers that start later are refused. Directories are safe"
            )
        return spec
    try:
        commit = _commit_of(spec.model, given)
    except _NoCommit as error:
        if isinstance(error, _NoModel) and here and not known:
            raise UserError(f"--model {spec.model}: no such directory, and no such model can be had: {error}") from None
        if not known:
            notice(
                f"--model {spec.model}: not pinned to a commit, for none is known ({error}): should it change on the hub, "
                f"engines that start later load another model, whose answers are kept as this one's. To be safe, add "
                f"--engine-arg revision=COMMIT, or name a directory"
            )
        return spec
    return replace(spec, args=tuple(sorted({**args, "revision": commit}.items())))


def _is_local(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~")) or Path(model).is_dir()


def find_commit(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a hub model stands for, from the hub or the local cache; the revision as it is where
    neither knows."""
    try:
        return _commit_of(name, revision)
    except _NoCommit:
        return revision  # said where it is pinned; and whoever loads the model says what is wrong with it


class _NoCommit(Exception):
    """Why it is not known what a revision stands for, in words."""


class _NoModel(_NoCommit):
    """The model is not here, and the hub does not give it either."""


def _is_cached(name: str) -> bool:
    """Whether the cache has something of a model, if only files that are not asked for here."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}").is_dir()


def _commit_of(name: str, revision: str | None) -> str:
    """The commit that a revision of a hub model stands for. Raises :class:`_NoCommit`."""
    if os.environ.get("VLLM_USE_MODELSCOPE", "").lower() == "true":
        raise _NoCommit("it comes from ModelScope")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        path = Path(hf_hub_download(name, "config.json", revision=revision))
    except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0].rstrip(".:") or type(error).__name__
        missing = isinstance(error, LocalEntryNotFoundError | RepositoryNotFoundError) and not _is_cached(name)
        raise (_NoModel if missing else _NoCommit)(said) from None
    if path.parent.parent.name != "snapshots":
        raise _NoCommit("the cache does not say where its copy comes from")
    return path.parent.name
