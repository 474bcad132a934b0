"""Who may know whom (DESIGN §10): read from the source, and from what a process has loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, pipeline, write_lines

_SOURCES = [path for package in ("pipeline", "jobs", "trainer") for path in sorted((ROOT / package).rglob("*.py"))]


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The modules that a file imports, each with whether it is for types alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield name, _for_types(node)


def _for_types(node: ast.AST) -> bool:
    while (parent := getattr(node, "parent", None)) is not None:
        if isinstance(parent, ast.If) and ast.unparse(parent.test) == "TYPE_CHECKING":
            return True
        node = parent
    return False


def _uses(path: Path, *modules: str) -> list[str]:
    return [name for name, types in _imports(path) if not types and any(_within(name, module) for module in modules)]


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _below(*folders: str) -> list[Path]:
    return [path for path in _SOURCES if any(path.is_relative_to(ROOT / folder) for folder in folders)]


def test_only_the_command_line_knows_jobs() -> None:
    for path in _below("pipeline"):
        assert path.name == "cli.py" or not _uses(path, "jobs"), path


def test_the_data_flow_knows_nothing_of_clusters_and_screens() -> None:
    folders = [f"pipeline/{folder}" for folder in ("read", "plan", "grid", "store")]
    for path in [*_below(*folders), ROOT / "pipeline" / "convert.py"]:
        shown = path.name == "render.py"
        unwanted = ["ray", "click", "polars", "vllm", *([] if shown else ["rich"])]
        assert not _uses(path, *unwanted), path


@pytest.mark.parametrize(
    ("folder", "above"),
    [
        ("pipeline/read", ["pipeline.plan", "pipeline.grid", "pipeline.store", "pipeline.look"]),
        ("pipeline/plan", ["pipeline.grid", "pipeline.store", "pipeline.look"]),
        ("pipeline/grid", ["pipeline.store", "pipeline.look"]),
        ("pipeline/store", ["pipeline.look"]),
    ],
)
def test_data_flows_one_way(folder: str, above: list[str]) -> None:
    for path in _below(folder):
        assert not _uses(path, *above), path


def test_only_the_pool_knows_ray() -> None:
    for path in _SOURCES:
        assert path == ROOT / "jobs" / "pool.py" or not _uses(path, "ray"), path


def test_jobs_hold_no_conversion_logic() -> None:
    for path in _below("jobs"):
        assert not _uses(path, "pyarrow", "numpy", "tokenizers", "pipeline.look", "trainer"), path


def test_torch_lives_in_the_trainer_which_reads_datasets_alone() -> None:
    allowed = ("pipeline", "pipeline.__version__", "pipeline.open_dataset", "pipeline.errors.UserError")
    for path in _SOURCES:
        if path.is_relative_to(ROOT / "trainer"):
            known = _uses(path, "pipeline", "jobs")
            assert all(_within(name, "pipeline.store") or name in allowed for name in known), path
        else:
            assert not _uses(path, "torch", "trainer"), path


_HEAVY = ("ray", "vllm", "polars", "torch", "click", "rich", "jobs")


def _loaded_by(code: str) -> set[str]:
    code += f"\nimport sys; print(*(name for name in {_HEAVY} if name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(ran.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert _loaded_by("import pipeline") == set()


def test_reading_a_dataset_loads_nothing_heavy(tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "chats.jsonl", 10)
    options = ["--input", corpus, "--out", tmp_path / "out", "--set", "shard.records=4", "--ray", "off"]
    assert pipeline("convert", *options).code == 0
    code = (
        f"import pipeline; ds = pipeline.open_dataset({str(tmp_path / 'out')!r}); assert ds[0].dense().size;"
        "assert sum(1 for _ in ds.columns()) == 3; ds.layout, ds.tokenizer, ds.manifest"
    )
    assert _loaded_by(code) == set()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "from click.testing import CliRunner; from pipeline.cli import cli; CliRunner().invoke(cli, ['convert', '-h'])"
    )
    assert _loaded_by(code) == {"click"}
