"""Whether workers see the driver's answer store, as far as one machine can tell."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import pipeline
from stub_server import StubServer
from taught import answer, write_turns

from jobs.pool import RayPool, _Worker
from jobs.shard import Setup, Task
from jobs.shared_folder import check_seen, marked
from jobs.teacher import teacher_setup
from jobs.teaching import TeacherSetup
from pipeline.engines.protocol import Model
from pipeline.engines.spec import EngineSpec, parse_spec
from pipeline.errors import UserError
from pipeline.grid.ids import token_ids
from pipeline.grid.tokens import load_tokenizer
from pipeline.read.cut import Cut
from pipeline.recipe import load_recipe
from pipeline.store.place import Place


def test_a_directory_is_made_and_marked_for_the_time_being(tmp_path: Path) -> None:
    store = tmp_path / "a" / "answers"
    with marked(str(store), "--answers") as mark, marked(str(store), "--answers") as other:
        assert mark != other
        check_seen(str(store), mark, "--answers")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()  # of the same name on another node, say
        for unseen in (elsewhere, tmp_path / "nowhere"):
            with pytest.raises(UserError, match="all nodes share") as said:
                check_seen(str(unseen), mark, "--answers")
            assert str(said.value).startswith(f"--answers {unseen}: the node '{socket.gethostname()}' ")
    assert list(store.iterdir()) == []


def test_a_store_that_may_only_be_read_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a replay; then no more can be told than that there is a directory."""

    def touch(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", touch)
    with marked(str(tmp_path), "--answers") as mark:
        assert mark is None
        check_seen(str(tmp_path), mark, "--answers")
        with pytest.raises(UserError):
            check_seen(str(tmp_path / "nowhere"), mark, "--answers")


@pytest.mark.parametrize("name", ["file", "file/answers"])
def test_what_is_no_directory_is_an_error_of_the_user(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=f"--answers {tmp_path / name}: cannot be used"),
        marked(str(tmp_path / name), "--answers"),
    ):
        raise AssertionError("it was taken for one")


def _setup(folder: Path, mark: str | None = None) -> Setup:
    recipe, tokenizer, place = load_recipe("align"), load_tokenizer("builtin"), Place(str(folder / "out"))
    place.put("_work/identity.json", b"{}")
    (folder / "script").write_text('{"text": "{}"}\n')
    spec = EngineSpec("scripted", (str(folder / "script"),))
    teacher = TeacherSetup(spec, Model("scripted"), str(folder / "answers"), mark=mark)
    return Setup(recipe, tokenizer, token_ids(recipe.layout, tokenizer), place, None, teacher)


def test_a_worker_that_does_not_see_the_store_makes_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--answers {tmp_path / 'answers'}: the node .* does not see this directory"):
        _Worker().start(_setup(tmp_path, mark=".seen-by-the-driver"))
    assert not (tmp_path / "answers").exists()


def test_a_worker_that_sees_it_starts(tmp_path: Path) -> None:
    setup = _setup(tmp_path)
    assert setup.teacher is not None
    worker = _Worker()
    with marked(setup.teacher.answers, "--answers") as mark:
        assert worker.start(setup._replace(teacher=setup.teacher._replace(mark=mark))) == socket.gethostname()
    worker.close()


@pytest.mark.ray
def test_a_node_without_the_store_stops_the_run(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def marked_here(folder: str, option: str) -> Iterator[str]:
        """As on the driver's own disk."""
        yield ".seen-by-the-driver"

    monkeypatch.setattr("jobs.pool.marked", marked_here)
    setup = _setup(tmp_path)
    with RayPool(cluster, 1, print) as pool, pytest.raises(UserError, match="does not see this directory") as said:
        list(pool.run(setup, [Task(0, Cut("chats.jsonl", "x", "jsonl", 0, 0, 0, 1), 1)]))
    assert "--answers" in str(said.value) and "\n" not in str(said.value)


@pytest.mark.ray
def test_a_run_on_a_cluster_leaves_no_mark(cluster: str, tmp_path: Path) -> None:
    corpus, out = write_turns(tmp_path / "chats.jsonl", 3), tmp_path / "out"
    with StubServer(answer) as server:
        ran = pipeline("convert", "--input", corpus, "--recipe", "align", "--engine", server.url, "--out", out,
                       "--ray", cluster, "--workers", "1")  # fmt: skip
    assert ran.code == 0, ran.output
    assert json.loads((out / "run.json").read_text())["teacher"]["accepted"] == 3
    assert not [path for path in (tmp_path / "out.answers").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("here", "said"), [(True, "name a directory with"), (False, "all nodes of the cluster share")])
def test_answers_beside_a_bucket(here: bool, said: str) -> None:
    spec = parse_spec("http://127.0.0.1:9/v1", "m")
    with pytest.raises(UserError, match=said) as error:
        teacher_setup(load_recipe("align"), spec, None, "s3://key:SHH@bucket/grids", 1, here)
    assert "--answers" in str(error.value) and "SHH" not in str(error.value)
