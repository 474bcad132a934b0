"""The wheel: what is installed works without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from running import ROOT, write_lines

BUILD = "import hatchling.build, sys; hatchling.build.build_wheel(sys.argv[1])"
COMMAND = "from pipeline.cli import main; main()"  # what the installed script does


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built by its own backend and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def _run(installed: Path, code: str, cwd: Path, *arguments: str | Path) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_every_schema_and_prompt_is_inside(installed: Path) -> None:
    for folder in ("schemas", "prompts"):
        shipped = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert shipped
        for path in shipped:
            assert (installed / "pipeline" / path).read_bytes() == (ROOT / path).read_bytes()
    assert "pipeline = pipeline.cli:main" in next(installed.glob("*.dist-info/entry_points.txt")).read_text()


def test_it_works_where_there_is_no_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import jobs, pipeline, trainer; from pipeline.resources import folder;"
    code += "print(jobs.__file__, pipeline.__file__, trainer.__file__, folder('schemas'), folder('prompts'))"
    places = _run(installed, code, tmp_path).split()
    assert len(places) == 5 and all(place.startswith(str(installed)) for place in places), places
    assert "wait-k" in _run(installed, COMMAND, tmp_path, "recipes")
    write_lines(tmp_path / "chats.jsonl", 5)
    options = ["--input", "chats.jsonl", "--out", "grids", "--ray", "off"]
    assert "5  converted" in _run(installed, COMMAND, tmp_path, "convert", *options)
    assert _run(installed, COMMAND, tmp_path, "validate", "grids", "--strict")
