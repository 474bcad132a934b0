"""Folders that take the place of others: the old one is there until the new one is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.errors import UserError
from trainer import files


def test_a_folder_is_durable_before_it_has_its_name_and_the_old_one_goes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, beside, old = tmp_path / "model", tmp_path / "beside", tmp_path / ".model.old"
    for folder, text in ((final, "old"), (beside, "new")):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "file").write_text(text)
    events = []

    def seen(name: str, real: object) -> None:
        def call(path: Path, **options: object) -> None:
            there = (final / "inner" / "file").read_text()
            events.append((name, path.relative_to(tmp_path).as_posix(), there, old.exists()))
            real(path, **options)  # type: ignore[operator]

        monkeypatch.setattr(files if name == "sync" else files.shutil, name, call)

    seen("sync", files.sync)
    seen("rmtree", files.shutil.rmtree)
    files.put_folder(beside, final)
    before = [("sync", name, "old", False) for name in ("beside/inner", "beside/inner/file", "beside")]
    assert events == [
        *before,
        ("rmtree", ".model.old", "old", False),
        ("sync", ".", "new", True),
        ("rmtree", ".model.old", "new", True),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "curves.png"
    folder.mkdir()
    (folder / "old").touch()
    file.write_text("old")
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=r"model: cannot be written: No space left on device"), files.new_folder(folder):
        try:
            raise full
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904  # as torch says it
    with pytest.raises(OSError, match=r"curves\.png"), files.new_file(file) as beside:
        beside.write_text("new")
        raise full
    for ours in (KeyboardInterrupt, AssertionError):
        with pytest.raises(ours), files.new_folder(folder) as beside:
            (beside / "new").touch()
            raise ours
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["curves.png", "model", "old"]
    assert file.read_text() == "old"
