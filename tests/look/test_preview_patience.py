"""A preview is as patient with an engine as a run is: what is dead is given up after as long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.teaching import Teacher, TeacherSetup
from pipeline.engines.protocol import Model
from pipeline.engines.spec import EngineSpec
from pipeline.look.teacher import PreviewTeacher
from pipeline.recipe import load_recipe
from pipeline.teach.asking import Asker


def test_as_long_as_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, Any]] = []
    make = Asker.__init__

    def noted(self: Asker, *args: Any, **options: Any) -> None:
        given.append((options["timeout"], options["losses"]))
        make(self, *args, **options)

    monkeypatch.setattr(Asker, "__init__", noted)
    (tmp_path / "script").write_text('{"text": "{}"}\n')
    spec = EngineSpec("scripted", (str(tmp_path / "script"),), timeout=1.5)
    recipe = load_recipe("align")
    with PreviewTeacher(recipe, spec, None):
        pass
    Teacher(TeacherSetup(spec, Model("scripted"), str(tmp_path / "answers")), recipe).close()
    assert given[0] == given[1] == (4.5, 8)
