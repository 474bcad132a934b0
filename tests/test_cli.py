"""The command line: frozen, and honest about what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from running import COMMAND, ROOT, finish, pipeline, spawned, start, write_lines

from pipeline.cli import cli

GOLDEN = Path(__file__).with_name("cli.golden.txt")


def _listing() -> Iterator[str]:
    """Every command with its parameters, their types and defaults."""
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        yield f"pipeline {name}"
        for parameter in command.params:
            yield f"    {_describe(parameter)}"


def _describe(parameter: click.Parameter) -> str:
    kind = parameter.type
    words = [" ".join(parameter.opts) if isinstance(parameter, click.Option) else str(parameter.metavar)]
    if isinstance(parameter, click.Option) and parameter.is_flag:
        words.append("flag")
    elif isinstance(kind, click.Choice):
        words.append("|".join(kind.choices))
    elif isinstance(kind, click.IntRange):
        words.append(f"integer from {kind.min}")
    else:
        words.append(kind.name)
    words += ["required"] if parameter.required else []
    words += ["many"] if parameter.multiple else []
    default = parameter.to_info_dict()["default"]
    if default not in (None, False, ()) and "Sentinel" not in repr(type(default)):
        words.append(f"default {default}")
    return ", ".join(words)


def test_the_command_line_is_what_it_was() -> None:
    """A change is meant, or it breaks somebody's script. Where it is meant, change the golden file too."""
    assert list(_listing()) == GOLDEN.read_text().splitlines()


def test_preview_takes_what_convert_takes() -> None:
    """So that one command can be edited into the other."""
    taken = {name: {option for p in cli.commands[name].params for option in p.opts} for name in ("convert", "preview")}
    assert taken["convert"] < taken["preview"]


def test_every_parameter_has_help() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None and command.help
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help, f"{name} {parameter.name}"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "chats.jsonl", 5)


WRONG = {
    "an option": (["--bogus", "1"], "No such option"),
    "a set key": (["--set", "unti=token"], "did you mean unit?"),
    "a set value": (["--set", "unit=word"], "sentence"),
    "a set without a value": (["--set", "unit"], "write KEY=VALUE"),
    "a recipe": (["--recipe", "wait"], "wait-k"),
    "a format": (["--format", "xml"], "sharegpt"),
    "what to do with long ones": (["--long", "cut"], "truncate"),
    "what to do with long ones, of which there are none": (["--long", "window"], "--long window: does nothing without"),
    "the same as a setting": (["--set", "rows.long=truncate"], "add --max-rows N"),
    "a number of workers": (["--workers", "0"], "--workers"),
    "workers without Ray": (["--workers", "2"], "--workers 2 needs Ray"),
    "a tokenizer": (["--tokenizer", "./nothing.json"], "nothing.json"),
    "a limit": (["--limit", "many"], "--limit"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_before_any_work(corpus: Path, tmp_path: Path, what: str) -> None:
    options, named = WRONG[what]
    ran = pipeline("convert", "--input", corpus, "--out", tmp_path / "out", "--ray", "off", *options)
    assert ran.code == 2 and named in ran.output, ran.output
    assert not Path(tmp_path, "out").exists()


def test_no_input(tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out", "--ray", "off"]
    empty = tmp_path / "empty"
    empty.mkdir()
    for given, named in (
        (["--input", str(tmp_path / "nothing.jsonl")], "nothing.jsonl: no such file"),
        (["--input", str(tmp_path / "*.json")], "no input file in"),
        (["--input", str(empty)], "no input file in"),
        ([], "--input"),
    ):
        ran = pipeline("convert", *given, *out)
        assert ran.code == 2 and named in ran.output, ran.output


@pytest.mark.parametrize("where", ["input", "out"])
def test_a_name_that_is_not_utf_8(corpus: Path, tmp_path: Path, where: str) -> None:
    """It cannot be written into the manifest."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9"))
    given = {"input": corpus, "out": tmp_path / "out", where: folder / "chats.jsonl"}
    if where == "input":
        folder.mkdir()
        corpus.rename(folder / corpus.name)
    ran = pipeline("convert", "--input", given["input"], "--out", given["out"], "--ray", "off")
    assert ran.code == 2 and "caf\\udce9/chats.jsonl: the name is not UTF-8; rename it" in ran.output, ran.output
    assert not given["out"].exists()


def test_an_empty_input(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("\n\n")
    ran = pipeline("convert", "--input", tmp_path / "chats.jsonl", "--out", tmp_path / "out", "--ray", "off")
    assert ran.code == 2 and "the input is empty" in ran.output


def test_everything_bad(tmp_path: Path) -> None:
    """A dataset without a grid is made, with its quarantine, and the exit says that something is wrong."""
    corpus = write_lines(tmp_path / "chats.jsonl", 6, bad=1)
    ran = pipeline("convert", "--input", corpus, "--out", tmp_path / "out", "--ray", "off")
    assert ran.code == 1
    assert "6 invalid_json" in ran.output and "Nothing could be converted" in ran.output
    assert len(Path(tmp_path, "out", "quarantine", "part-00000.jsonl").read_text().splitlines()) == 6
    ran = pipeline("convert", "--input", corpus, "--out", tmp_path / "out", "--ray", "off")
    assert ran.code == 1  # also where it is finished already


@pytest.mark.parametrize("command", [["validate"], ["stats"], ["show"], ["retry"]])
def test_no_dataset(tmp_path: Path, command: list[str]) -> None:
    ran = pipeline(*command, tmp_path / "nothing")
    assert ran.code in (1, 2) and "nothing" in ran.output


def test_no_traceback_in_a_process_of_its_own(tmp_path: Path) -> None:
    """As a user sees it."""
    corpus = write_lines(tmp_path / "chats.jsonl", 3, bad=1)
    for code, options in ((1, []), (2, ["--set", "unti=1"]), (2, ["--ray", "nowhere"])):
        ran = spawned("convert", "--input", corpus, "--out", tmp_path / f"out{len(options)}", "--ray", "off", *options)
        assert ran.code == code and "Traceback" not in ran.output, ran.output


@pytest.mark.parametrize("command", ["show", "preview", "stats", "validate"])
def test_a_reader_that_has_seen_enough(tmp_path: Path, command: str) -> None:
    """As in `pipeline preview … | head`: nothing is wrong."""
    corpus = write_lines(tmp_path / "chats.jsonl", 300, words=400)
    options = ["--input", corpus, "--limit", "300"]
    if command != "preview":
        assert pipeline("convert", "--input", corpus, "--out", tmp_path / "out", "--ray", "off").code == 0
        options = [tmp_path / "out"]
    process = start([command, *options])
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 0


def test_nobody_reads_the_progress(tmp_path: Path) -> None:
    """What goes to stdout comes all the same."""
    corpus = write_lines(tmp_path / "chats.jsonl", 20)
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "summary").open("wb") as summary:
        options = ["convert", "--input", corpus, "--out", tmp_path / "out", "--ray", "off"]
        ran = subprocess.run([*COMMAND, *options], stdout=summary, stderr=writer, cwd=ROOT, check=False)
    os.close(writer)
    assert ran.returncode == 0 and "20" in (tmp_path / "summary").read_text()


@pytest.mark.ray
def test_ctrl_c_twice(tmp_path: Path) -> None:
    """Whoever presses it twice has stopped the command as in order as whoever presses it once."""
    corpus = write_lines(tmp_path / "chats.jsonl", 4000, words=250)
    command = ["convert", "--input", corpus, "--out", tmp_path / "out", "--ray", "local", "--workers", "1"]
    process = start([*command, "--set", "shard.records=20"])
    until = time.monotonic() + 60
    while not list(tmp_path.glob("out/_work/commits/*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    for _ in range(4):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    ran = finish(process)
    assert ran.code == 130 and "Traceback" not in ran.output, ran.output
    assert ran.output.count("Stopped. What was finished is kept") == 1


def test_the_whole_way(tmp_path: Path) -> None:
    """Convert, validate, count, show, export: every command takes what the first one makes."""
    corpus = write_lines(tmp_path / "chats.jsonl", 6, bad=4)
    out = tmp_path / "out"
    ran = pipeline("convert", "--input", corpus, "--out", out)
    assert ran.code == 0 and "5  converted" in ran.output
    ran = pipeline("validate", out, "--strict", "--json")
    assert ran.code == 0, ran.output
    assert pipeline("show", out, "--id", "chats.jsonl:2", "--no-pager").code == 0
    assert json.loads(pipeline("stats", out, "--json").output)
    assert pipeline("export", out, "--out", tmp_path / "rows", "--to", "rows-jsonl").code == 0
    assert pipeline("preview", "--input", corpus, "--no-pager").code == 0
    assert "wait-k" in pipeline("recipes").output
