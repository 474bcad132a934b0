"""What the options say about an engine."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from running import ROOT

from pipeline.engines.build import build_engine
from pipeline.engines.identify import pin
from pipeline.engines.local_model import model_of
from pipeline.engines.spec import EngineSpec, checked, parse_spec, request_revision
from pipeline.errors import UserError


def test_no_engine_is_none() -> None:
    assert parse_spec("none") is None


def test_servers_are_told_apart_and_tidied() -> None:
    spec = parse_spec("http://a:1/v1/, https://b/v1/chat/completions", "m", ["top-k=5", "stop=[a, b]"], 7, 9.5)
    assert spec == EngineSpec(
        kind="http",
        where=("http://a:1/v1", "https://b/v1"),
        model="m",
        args=(("stop", ["a", "b"]), ("top_k", 5)),
        concurrency=7,
        timeout=9.5,
    )
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert spec.gpus == 0


def test_the_revision_of_a_served_model_is_what_the_user_says() -> None:
    """As it is written, also where it is a number; and no field of a request."""

    def spec(*args: str) -> EngineSpec:
        made = parse_spec("http://a/v1", "m", args)
        assert made is not None
        return made

    assert spec("revision=0123456", "top_k=5").args == (("top_k", 5),)
    revisions = [
        request_revision(spec(*args))
        for args in ([], ["revision=0123456"], ["revision=1e5"], ["top_k=5"], ["top_k=5", "revision=1e5"])
    ]
    assert revisions == [None, "0123456", "1e5", '{"top_k": 5}', '1e5 {"top_k": 5}']
    again = spec("revision=1e5", "top_k=5")
    assert EngineSpec(**asdict(again)) == again  # as a retry reads it
    vllm = parse_spec("vllm", "m", ["revision=0123456"])
    assert vllm is not None and vllm.revision is None and vllm.args == (("revision", "0123456"),)
    for wrong in ("revision=", "revision=[a]", "revision={a: b}"):
        with pytest.raises(UserError, match=r"--engine-arg revision .*must be a name"):
            spec(wrong)


def test_gpus_are_all_parallel_sizes_multiplied() -> None:
    spec = parse_spec("vllm", "m", ["tensor-parallel-size=4", "pipeline_parallel_size=2", "quantization=fp8"])
    assert spec is not None and spec.gpus == 8
    assert replace(spec, args=(*spec.args, ("data_parallel_size", 3))).gpus == 24
    plain = parse_spec("vllm", "m")
    assert plain is not None and plain.gpus == 1


@pytest.mark.parametrize(
    ("engine", "model", "args", "said"),
    [
        ("openai", None, [], "no such engine; use none, vllm, scripted:FILE or http"),
        ("none", "m", [], "--model: there is no engine"),
        ("none", None, ["a=1"], "--engine-arg: there is no engine"),
        ("vllm", None, [], "Add --model"),
        ("vllm", "m", ["tensor_parallel_size"], "KEY=VALUE"),
        ("vllm", "m", ["tensor_parallel_size=two"], "whole number of GPUs"),
        ("vllm", "m", ["tensor_parallel_size=0"], "whole number of GPUs"),
        ("vllm", "m", ["a=1", "a=2"], "given twice"),
        ("vllm", "m", ["a=[1"], "no YAML"),
        ("vllm", "m", ["data_parallel_size=2.0"], "whole number of GPUs"),
        ("vllm", "m", ["model=n"], "say --model"),
        ("http://a/v1", None, ["model=n"], "say --model"),
        ("http://a/v1", None, ["max-tokens=9"], "teacher.temperature"),
        ("http://a/v1", None, ["max-model-len=9"], "for whoever starts the server"),
        ("http://a/v1", None, ["structured_outputs={}"], "leave it out"),
        ("scripted:", None, [], "which file"),
        ("scripted:f", None, ["a=1"], "takes none"),
        ("http://", None, [], "write http://HOST:PORT/v1"),
        ("http://a:port/v1", None, [], "no URL"),
        ("http://a/v1,ftp://b/v1", None, [], "ftp://b/v1: write http"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(engine: str, model: str | None, args: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_spec(engine, model, args)
    assert said in str(error.value)


def test_a_key_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError) as error:
        parse_spec("https://user:sk-secret@host/v1")
    assert "sk-secret" not in str(error.value)
    assert "PIPELINE_API_KEY" in str(error.value)


@pytest.mark.parametrize("engine", ["vllm", "http://a/v1"])
@pytest.mark.parametrize(
    "arg", ["hf_token=SHH", "api-key=SHH", "x={headers: [{Authorization: SHH}]}", "db_password=SHH", "hf_token=[SHH"]
)
def test_a_secret_is_refused_with_where_it_belongs_and_not_repeated(engine: str, arg: str) -> None:
    with pytest.raises(UserError) as error:
        parse_spec(engine, "m", [arg])
    assert "SHH" not in str(error.value)
    assert "YAML" in str(error.value) or ("HF_TOKEN" in str(error.value) and "PIPELINE_API_KEY" in str(error.value))


def test_what_a_recipe_adds_is_checked_alike() -> None:
    for kind in ("vllm", "http"):
        spec = EngineSpec(kind=kind, model="m", args=(("hf_token", "SHH"),))  # type: ignore[arg-type]
        with pytest.raises(UserError, match="PIPELINE_API_KEY"):
            checked(spec)
    fine = EngineSpec(kind="vllm", model="m", args=(("hf_overrides", {"classifier_from_token": ["no", "yes"]}),))
    assert checked(fine) is fine


def test_every_worker_loads_the_commit_that_the_driver_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hub's cache as it lies on a disk: after the branch has moved on, the pinned spec names the same model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    old, new = "a" * 40, "b" * 40
    cached = tmp_path / "models--some--model"
    for commit in (old, new):
        (cached / "snapshots" / commit).mkdir(parents=True)
        (cached / "snapshots" / commit / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(old)
    spec = parse_spec("vllm", "some/model", ["dtype=float16"])
    assert spec is not None
    notices: list[str] = []
    pinned = pin(spec, notices.append)
    assert notices == []
    (cached / "refs" / "main").write_text(new)
    assert dict(pinned.args) == {"dtype": "float16", "revision": old}
    assert model_of(pinned).revision == f'{old} dtype="float16"'
    assert model_of(spec).revision == f'{new} dtype="float16"'
    nowhere = replace(spec, model="some/unknown")
    assert pin(nowhere, notices.append) == nowhere
    assert len(notices) == 1


def test_numbers_must_be_more_than_none() -> None:
    with pytest.raises(UserError, match="--concurrency 0"):
        parse_spec("http://a/v1", concurrency=0)
    with pytest.raises(UserError, match="--engine-timeout -1"):
        parse_spec("http://a/v1", timeout=-1)


def test_where_vllm_is_missing_the_user_hears_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "vllm.py").write_text("raise ImportError('no vllm')")
    code = (
        "from pipeline.engines.build import build_engine; from pipeline.engines.spec import parse_spec\n"
        "from pipeline.errors import UserError\n"
        "try: build_engine(parse_spec('vllm', 'm'))\n"
        "except UserError as error: print(error)"
    )
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    ran = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=True)
    assert "pip install" in ran.stdout and "multistream-pipeline[vllm]" in ran.stdout


def test_building_one_engine_imports_no_other() -> None:
    code = (
        "import sys; from pipeline.engines.build import build_engine; from pipeline.engines.spec import parse_spec\n"
        "build_engine(parse_spec('http://a/v1')); print('vllm' in sys.modules, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


def test_a_missing_script_is_named() -> None:
    spec = parse_spec("scripted:/nowhere/answers.jsonl")
    assert spec is not None
    with pytest.raises(UserError, match=r"/nowhere/answers\.jsonl"):
        build_engine(spec)


def test_where_vllm_is_missing_the_summary_says_what_was_not_tested() -> None:
    code = (
        "import importlib.util as util, sys; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'vllm' else find(name, *rest)\n"
        "import pytest; sys.exit(pytest.main([*sys.argv[1:], '-p', 'no:cacheprovider']))"
    )
    test = "tests/engines/test_vllm.py::test_a_seed_draws_the_same_answer_again"
    ran = subprocess.run([sys.executable, "-c", code, test], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    [line] = [line for line in ran.stdout.splitlines() if "NOT tested" in line]
    assert "vllm" in line and "1 skipped" in ran.stdout
