"""What a second run does with what the first one left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Made, assert_same, contents, finish, free_port, pipeline, small_disk, start, write_lines

from pipeline.store.place import Place


@pytest.fixture
def unfinished(small: Made, tmp_path: Path) -> Iterator[list[str]]:
    """The command of a run that was stopped after some of its shards."""
    command = [*small.options, "--out", str(tmp_path / "out"), "--ray", "off"]
    _stop_after(5, command)
    yield command


def _stop_after(shards: int, command: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        put = Place.put

        def stopping(self: Place, name: str, data: bytes) -> None:
            if name == f"_work/commits/part-{shards:05d}.json":
                raise KeyboardInterrupt
            put(self, name, data)

        patch.setattr(Place, "put", stopping)
        assert pipeline(*command).code == 130


def test_what_was_finished_is_kept(small: Made, tmp_path: Path, unfinished: list[str]) -> None:
    kept = Path(tmp_path, "out", "data", "part-00002.parquet").stat().st_mtime_ns
    ran = pipeline(*unfinished)
    assert ran.code == 0 and "5 of 12 shards were there already" in ran.output
    assert Path(tmp_path, "out", "data", "part-00002.parquet").stat().st_mtime_ns == kept
    assert_same(tmp_path / "out", small.contents)


@pytest.mark.parametrize(
    "name", ["data/part-00002.parquet", "plans/part-00001.jsonl.zst", "quarantine/part-00009.jsonl"]
)
@pytest.mark.parametrize("how", ["flipped", "shorter", "gone"])
def test_a_finished_shard_that_was_damaged_is_converted_again(small: Made, tmp_path: Path, name: str, how: str) -> None:
    command = [*small.options, "--out", str(tmp_path / "out"), "--ray", "off"]
    _stop_after(11, command)
    file = tmp_path / "out" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(data if how == "flipped" else data[:-1])
    ran = pipeline(*command)
    assert ran.code == 0 and "10 of 12 shards were there already" in ran.output
    assert_same(tmp_path / "out", small.contents)


def test_a_commit_that_cannot_be_read_commits_nothing(small: Made, tmp_path: Path, unfinished: list[str]) -> None:
    Path(tmp_path, "out", "_work", "commits", "part-00001.json").write_bytes(b"{")
    ran = pipeline(*unfinished)
    assert ran.code == 0 and "4 of 12 shards were there already" in ran.output
    assert_same(tmp_path / "out", small.contents)


def test_a_finished_dataset_is_left_alone(small: Made, tmp_path: Path) -> None:
    command = [*small.options, "--out", str(tmp_path / "out"), "--ray", "off"]
    assert pipeline(*command).code == 0
    run_json = Path(tmp_path, "out", "run.json").read_bytes()
    ran = pipeline(*command)
    assert ran.code == 0 and "nothing to do: it was finished already" in ran.output
    assert Path(tmp_path, "out", "run.json").read_bytes() == run_json
    assert not Path(tmp_path, "out", "_work").exists()
    assert_same(tmp_path / "out", small.contents)


_CHANGES = {
    "an option": (["--set", "unit=token"], 'recipe.options.unit: "sentence" there, "token" now'),
    "the recipe": (["--recipe", "sequential"], 'recipe.name: "wait-k" there, "sequential" now'),
    "the limit": (["--limit", "50"], "recipe.read.limit: none there, 50 now"),
    "the shards": (["--set", "shard.records=11"], "recipe.shard.records: 10 there, 11 now"),
}


@pytest.mark.parametrize("what", _CHANGES)
@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_another_recipe_is_refused_and_named(small: Made, tmp_path: Path, what: str, state: str) -> None:
    command = [*small.options, "--out", str(tmp_path / "out"), "--ray", "off"]
    if state == "unfinished":
        _stop_after(2, command)
    else:
        assert pipeline(*command).code == 0
    before = contents(tmp_path / "out")
    change, difference = _CHANGES[what]
    ran = pipeline(*command, *change)
    assert ran.code == 2
    assert difference in ran.output and "--fresh to start over" in ran.output
    assert contents(tmp_path / "out") == before


def test_another_input_is_refused_and_named_and_fresh_starts_over(tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "chats.jsonl", 20)
    command = ["convert", "--input", str(corpus), "--out", str(tmp_path / "out"), "--ray", "off"]
    assert pipeline(*command).code == 0
    write_lines(corpus, 21)
    ran = pipeline(*command)
    assert ran.code == 2 and "inputs.chats.jsonl: " in ran.output
    assert pipeline(*command, "--fresh").code == 0
    assert pipeline(*command[:-4], "--out", tmp_path / "new", "--ray", "off").code == 0
    assert_same(tmp_path / "out", contents(tmp_path / "new"))


def test_another_tokenizer_is_refused_and_named(small: Made, tmp_path: Path) -> None:
    command = [*small.options, "--out", str(tmp_path / "out"), "--ray", "off"]
    assert pipeline(*command).code == 0
    other = tmp_path / "tokenizer.json"
    other.write_bytes(Path(tmp_path, "out", "tokenizer.json").read_bytes())
    ran = pipeline(*command, "--tokenizer", other)
    assert ran.code == 2 and "  tokenizer" in ran.output and " there, " in ran.output, ran.output


def test_fresh_leaves_nothing_of_what_was_there(small: Made, tmp_path: Path) -> None:
    """Also of a dataset that had more shards, and rejected more."""
    command = [*small.options, "--out", str(tmp_path / "out"), "--ray", "off"]
    pipeline(*command, "--set", "shard.records=3", "--max-rows", "60")
    assert len(list(Path(tmp_path, "out", "quarantine").iterdir())) > 12
    assert pipeline(*command, "--fresh").code == 0
    assert_same(tmp_path / "out", small.contents)


@pytest.mark.parametrize("wrong", [["--ray", "127.0.0.1:{port}"], ["--ray", "{cluster}", "--workers", "9"]])
def test_fresh_deletes_nothing_where_there_are_no_workers(
    small: Made, cluster: str, tmp_path: Path, wrong: list[str]
) -> None:
    command = [*small.options, "--out", str(tmp_path / "out")]
    assert pipeline(*command, "--ray", "off").code == 0
    ran = pipeline(*command, *(word.format(port=free_port(), cluster=cluster) for word in wrong), "--fresh")
    assert ran.code == 2 and "Error: --" in ran.output, ran.output
    assert_same(tmp_path / "out", small.contents)


@pytest.mark.parametrize("name", ["notes.txt", "data/chats.jsonl", "tokenizer.json"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_directory_with_other_files_is_refused_and_left_as_it_was(
    small: Made, tmp_path: Path, name: str, fresh: bool
) -> None:
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    command = [*small.options, "--out", str(tmp_path / "out"), "--ray", "off", *(["--fresh"] if fresh else [])]
    ran = pipeline(*command)
    assert ran.code == 2 and f"there are other files in it ({name})" in ran.output
    assert contents(tmp_path / "out") == {name: b"mine"}
    assert not Path(tmp_path, "out", "_work").exists()


def test_files_that_somebody_put_beside_the_dataset_stay(small: Made, tmp_path: Path) -> None:
    command = [*small.options, "--out", str(tmp_path / "out"), "--ray", "off"]
    assert pipeline(*command).code == 0
    Path(tmp_path, "out", "README.md").write_text("mine")
    Path(tmp_path, "out", "data", "notes.md").write_text("mine")
    assert pipeline(*command, "--fresh").code == 0
    assert_same(tmp_path / "out", {**small.contents, "README.md": b"mine", "data/notes.md": b"mine"})


def test_the_dataset_is_not_its_own_input(tmp_path: Path) -> None:
    """``--input . --out ./grids``: a second run finds the files of the first one among its inputs."""
    write_lines(tmp_path / "chats.jsonl", 20, bad=7)
    command = ["convert", "--input", str(tmp_path), "--out", str(tmp_path / "out"), "--ray", "off"]
    assert pipeline(*command).code == 0
    ran = pipeline(*command)
    assert ran.code == 0 and "nothing to do" in ran.output


def test_a_second_run_at_the_same_time_is_refused(large: Made, tmp_path: Path) -> None:
    command = [*large.options, "--out", str(tmp_path / "out"), "--ray", "off"]
    first = start(command)
    try:
        while not list(Path(tmp_path).glob("out/_work/commits/*")):
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        ran = pipeline(*command)
        assert ran.code == 2 and "another run is writing there" in ran.output
    finally:
        first.send_signal(signal.SIGCONT)
    assert finish(first).code == 0
    assert_same(tmp_path / "out", large.contents)


def test_a_full_disk_stops_with_a_message_and_resumes(small: Made, tmp_path: Path) -> None:
    size = sum(map(len, small.contents.values()))
    with small_disk(tmp_path / "disk", size) as disk:
        command = [*small.options, "--out", str(disk / "out"), "--ray", "off"]
        ballast = disk / "ballast"
        ballast.write_bytes(os.urandom(size // 2))
        ran = pipeline(*command)
        assert ran.code == 2
        assert "the disk is full. Free some space and run the same command again" in ran.output
        ballast.unlink()
        os.system(f"mount -o remount,size={4 * size + (1 << 20)} {disk}")
        ran = pipeline(*command)
        assert ran.code == 0 and "shards were there already" in ran.output
        assert_same(disk / "out", small.contents)


def test_a_directory_that_cannot_be_written(small: Made, tmp_path: Path) -> None:
    Path(tmp_path, "file").write_text("not a directory")
    ran = pipeline(*small.options, "--out", tmp_path / "file" / "out", "--ray", "off")
    assert ran.code == 2 and "cannot be written" in ran.output
