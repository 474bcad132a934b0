"""Which model an engine will load, found out without loading it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from pipeline.engines.protocol import Model
from pipeline.engines.spec import EngineSpec
from pipeline.errors import UserError

#: Engine arguments that make another model of the same weights; the others only say how fast, and where.
_ANOTHER_MODEL = (
    "dtype",
    "generation_config",
    "hf_overrides",
    "kv_cache_dtype",
    "load_format",
    "quantization",
    "tokenizer",
    "tokenizer_revision",
)
_END = 1 << 20


def model_of(spec: EngineSpec) -> Model:
    """Name and revision of the model that a ``vllm`` engine loads; its context is known once it is loaded.

    A directory goes by its last name and its content, a hub model by its name and commit. Engine arguments that change
    what the model computes are part of the revision.
    Raises :class:`UserError` where a directory does not exist.
    """
    assert spec.model is not None
    path, args = Path(spec.model).expanduser(), dict(spec.args)
    revision: str | None
    if path.is_dir():
        name, revision = path.resolve().name, describe_directory(path)
    elif spec.model.startswith(("/", "./", "../", "~")):
        raise UserError(f"--model {spec.model}: no such directory; it must be there on every machine that takes part")
    else:
        name, revision = spec.model, find_commit(spec.model, args.get("revision"))
    details = [] if revision is None else [revision]
    details += [f"{key}={json.dumps(args[key], sort_keys=True)}" for key in _ANOTHER_MODEL if key in args]
    return Model(name, " ".join(details) or None)


def pinned(spec: EngineSpec) -> EngineSpec:
    """The spec with the commit that a hub model is at now, so that every engine that is built from it loads that one.

    A directory, and a model of which no commit is known here, stay as they are; so does one whose tokenizer or configuration
    comes from elsewhere, where vLLM would look for the same commit.
    """
    assert spec.model is not None
    args = dict(spec.args)
    elsewhere = "hf_config_path" in args or ("tokenizer" in args and "tokenizer_revision" not in args)
    if elsewhere or Path(spec.model).expanduser().is_dir():
        return spec
    commit = find_commit(spec.model, args.get("revision"))
    return spec if commit is None else replace(spec, args=tuple(sorted({**args, "revision": commit}.items())))


def find_commit(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a hub model stands for, from the hub or the local cache; None where neither knows."""
    if os.environ.get("VLLM_USE_MODELSCOPE", "").lower() == "true":
        return revision  # another hub
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        path = Path(hf_hub_download(name, "config.json", revision=revision))
    except (HFValidationError, HfHubHTTPError, OSError, ValueError):
        return revision  # whoever loads it says what is wrong
    return path.parent.name if path.parent.parent.name == "snapshots" else revision


def describe_directory(path: Path) -> str:
    """A hash over the files of a model's directory: names, sizes, and content; of large ones the two ends.

    Stays the same when the directory is copied or renamed. Hidden files and folders (caches, version control) do not
    count.
    """
    digest = sha256()
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if not file.is_file() or any(name.startswith(".") for name in inside.parts):
            continue
        size = file.stat().st_size
        digest.update(f"{inside.as_posix()}\0{size}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_END))
            if size > _END:
                opened.seek(max(_END, size - _END))
                digest.update(opened.read(_END))
    return digest.hexdigest()[:16]
