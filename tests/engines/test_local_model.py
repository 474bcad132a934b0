"""Which model an engine will load: two that answer differently never go by the same name and revision."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.teacher import teacher_setup
from pipeline.engines.identify import pin
from pipeline.engines.local_model import model_of
from pipeline.engines.spec import EngineSpec, parse_spec
from pipeline.engines.weights import describe_directory
from pipeline.errors import UserError
from pipeline.recipe import load_recipe

_MIB = 1 << 20
#: Sizes of tensors in bytes; the file is larger than what is read whole. Mostly zeros, which take no room on the disk.
_TENSORS = {"embed": 40 * _MIB, "layer.0.norm": 5000, "layer.0.q": 24 * _MIB, "layer.1.k": _MIB, "layer.1.norm": 8}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory as it is on the hub, with a large file of each kind."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_bytes(bytes(3 * _MIB))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, size in _TENSORS.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}  # type: ignore[dict-item]
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    with (folder / "old.bin").open("wb") as stream:
        stream.truncate(80 * _MIB)
    return folder


def _bounds(file: Path) -> dict[str, tuple[int, int]]:
    data = file.read_bytes()[: 1 << 16]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return {name: tuple(8 + length + at for at in header[name]["data_offsets"]) for name in _TENSORS}  # type: ignore[misc]


def _write(file: Path, start: int, data: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(start)
        stream.write(data)


@pytest.mark.parametrize("tensor", _TENSORS)
def test_another_tensor_is_another_model(model: Path, tensor: str) -> None:
    """What was trained may be a single one of them, however small, with all others and all sizes as they were."""
    before = describe_directory(model)
    begin, end = _bounds(model / "model.safetensors")[tensor]
    _write(model / "model.safetensors", begin, bytes([1]) * (end - begin))
    assert describe_directory(model) != before


@pytest.mark.parametrize("part", [0, 0.3, 0.5, 0.9])
def test_another_stretch_of_a_large_file_is_another_model(model: Path, part: float) -> None:
    before = describe_directory(model)
    _write(model / "old.bin", int(part * 80 * _MIB), bytes([1]) * (4 * _MIB))
    assert describe_directory(model) != before


@pytest.mark.parametrize("place", [0, 2 * _MIB, 3 * _MIB - 1])
def test_a_single_byte_of_a_small_file_is_another_model(model: Path, place: int) -> None:
    before = describe_directory(model)
    _write(model / "tokenizer.json", place, b"x")
    assert describe_directory(model) != before


def test_names_and_sizes_count_and_hidden_files_do_not(model: Path) -> None:
    before = describe_directory(model)
    copied = shutil.copytree(model, model.with_name("copied"))
    (copied / ".cache").mkdir()
    (copied / ".cache" / "lock").write_text("x")
    (copied / ".gitattributes").write_text("x")
    assert describe_directory(copied) == before
    (copied / "config.json").rename(copied / "configuration.json")
    renamed = describe_directory(copied)
    with (copied / "old.bin").open("r+b") as stream:
        stream.truncate(80 * _MIB + 1)
    assert len({before, renamed, describe_directory(copied)}) == 3


@pytest.mark.parametrize(
    "head",
    [
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little"),
        (4).to_bytes(8, "little") + b"[1]]",
        (2).to_bytes(8, "little") + b"[]",
        (7).to_bytes(8, "little") + b'{"a":1}',
        (21).to_bytes(8, "little") + b'{"a":{"data_offsets"}}',
        (33).to_bytes(8, "little") + b'{"a":{"data_offsets":[9e9,"b",0]}}'[:33],
    ],
)
def test_a_damaged_file_is_described_too(model: Path, head: bytes) -> None:
    """Whoever loads it says what is wrong with it."""
    before = describe_directory(model)
    _write(model / "model.safetensors", 0, head)
    assert len({before, describe_directory(model)}) == 2


def test_a_large_model_is_not_read_whole(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (model / "huge.bin").open("wb") as stream:
        stream.truncate(64 << 30)
    read = 0
    pread = os.pread

    def counted(handle: int, length: int, start: int) -> bytes:
        nonlocal read
        read += length
        return pread(handle, length, start)

    monkeypatch.setattr("os.pread", counted)
    describe_directory(model)
    assert 0 < read < 32 * _MIB


def test_arguments_that_make_another_model_are_told_apart(model: Path) -> None:
    """And those that say how fast, or where, make no other."""
    plain = EngineSpec("vllm", model=str(model))
    other = [
        ("hf_config_path", "/elsewhere"),
        ("tokenizer_mode", "mistral"),
        ("tokenizer", "some/other"),
        ("quantization", "fp8"),
        ("dtype", "float16"),
        ("hf_overrides", {"rope_theta": 1}),
        ("override_generation_config", {"eos_token_id": 7}),
        ("model_class_overrides", {"A": "b:C"}),
    ]
    found = {model_of(replace(plain, args=(arg,))).revision for arg in other}
    assert len(found | {model_of(plain).revision}) == len(other) + 1
    speed = (
        ("enforce_eager", True),
        ("gpu_memory_utilization", 0.5),
        ("max_model_len", 9),
        ("tensor_parallel_size", 8),
    )
    assert model_of(replace(plain, args=speed)) == model_of(plain)


def test_a_tokenizer_s_directory_counts_by_its_content(model: Path, tmp_path: Path) -> None:
    def revision(folder: str) -> str | None:
        return model_of(EngineSpec("vllm", model=str(model), args=(("tokenizer", str(tmp_path / folder)),))).revision

    for folder in ("one", "same", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tokenizer.json").write_text("other" if folder == "other" else "this")
    assert revision("one") == revision("same") != revision("other")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of a hub that cannot be reached; ``some/model`` is in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--some--model"
    (cached / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (cached / "snapshots" / ("a" * 40) / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    yield cached


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("model", "args", "said"),
    [
        ("some/model", [], None),
        ("some/unknown", [], "none is known"),
        ("some/unknown", ["revision=main"], "none is known"),
        ("some/unknown", [f"revision={'b' * 40}"], None),
        ("no name for a model", [], "none is known"),
        ("some/model", ["tokenizer=some/other"], "elsewhere"),
        ("some/model", ["hf_config_path=some/other"], "elsewhere"),
        ("some/model", ["tokenizer=some/other", f"revision={'b' * 40}"], None),
        ("/nowhere", [], None),
    ],
)
def test_a_hub_model_that_is_not_pinned_is_said(model: str, args: list[str], said: str | None) -> None:
    spec = parse_spec("vllm", model, args)
    assert spec is not None
    notices: list[str] = []
    pinned = pin(spec, notices.append)
    if said is None:
        assert notices == []
        return
    assert pinned == spec
    (notice,) = notices
    assert notice.startswith(f"--model {model}: not pinned to a commit") and said in notice and "\n" not in notice


@pytest.mark.parametrize(("model", "args"), [("some/unknown", []), ("mistyped", ["revision=main"])])
@pytest.mark.usefixtures("hub")
def test_a_model_that_cannot_be_had_stops_a_run_on_this_machine_at_once(model: str, args: list[str]) -> None:
    spec = parse_spec("vllm", model, args)
    assert spec is not None
    with pytest.raises(UserError, match=f"--model {model}: no such directory, and no such model can be had"):
        pin(spec, lambda _: None, here=True)


@pytest.mark.usefixtures("hub")
def test_a_run_says_so(tmp_path: Path) -> None:
    notices: list[str] = []
    spec = parse_spec("vllm", "some/unknown")
    setup = teacher_setup(load_recipe("align"), spec, None, str(tmp_path / "out"), 1, notice=notices.append)
    assert setup is not None and setup.model.revision is None
    assert len(notices) == 1 and "--engine-arg revision=COMMIT" in notices[0]
