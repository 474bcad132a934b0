"""The command line of the trainer: options in, messages out."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pipeline import __version__
from pipeline.errors import UserError

if TYPE_CHECKING:
    from trainer.config import Config


def main() -> NoReturn:
    """Run the command line: 0 done, 2 something is wrong that a user can mend, 130 interrupted."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        _say("Stopped at once.")
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        _say(f"Error{_process()}: {error}")
        sys.exit(2)
    except OSError as error:
        _say(f"Error{_process()}: {error.filename or 'output'}: {error.strerror or error}")
        sys.exit(2)
    sys.exit(0)


def _leave() -> NoReturn:
    """Exit as a user's error does, when the process that says it has had time: the launcher ends all after the first."""
    time.sleep(3)
    sys.exit(2)


def _rank() -> int:
    """Which process of several this is, as ``torchrun`` says."""
    return int(os.environ.get("RANK", "0"))


def _process() -> str:
    """Which process of several speaks, where it is not the first."""
    return f" in process {_rank()}" if _rank() else ""


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        click.echo(_wrapped(text), err=True)


def _wrapped(text: str) -> str:
    """Broken at words, where a person reads it on a terminal."""
    if not sys.stderr.isatty():
        return text
    width = max(40, shutil.get_terminal_size().columns - 1)
    lines = text.split("\n")
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    )


class _Lines(logging.Formatter):
    """Messages alone, broken at words."""

    def format(self, record: logging.LogRecord) -> str:
        return _wrapped(super().format(record))


def _quiet_libraries() -> None:
    """Of the log, our messages alone; no bars but ours."""
    import transformers

    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.WARNING if _rank() else logging.INFO, handlers=[handler])
    for library, level in {
        "transformers": "ERROR",
        "torch": "ERROR",
        "httpx": "ERROR",
        "trainer.data": "WARNING",
    }.items():
        logging.getLogger(library).setLevel(level)
    transformers.utils.logging.disable_progress_bar()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trainer")
def cli() -> None:
    """Fine-tune a decoder on stream grids.

    \b
    trainer train --data grids --model Qwen/Qwen3-0.6B --out run     train
    trainer plot run                                                 draw its curves
    trainer export run --out model                                   a checkpoint as a Hugging Face directory
    """


@cli.command()
@click.option("--data", help="Dataset made by `pipeline convert`.")
@click.option("--model", help="Directory or hub name of a decoder.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory of the run.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file with further options.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any option, e.g. data.cells=4096.")
@click.option("--max-steps", type=int, help="Steps; default: one epoch.")
@click.option("--save-every", type=int, help="Steps between checkpoints.")
@click.option("--resume", type=click.Choice(["auto", "never"]), default="never", help="auto: go on, if there is a run.")
@click.option("--device", help="cpu, cuda, …; default: a GPU where there is one.")
def train(
    data: str | None,
    model: str | None,
    out: Path,
    file: Path | None,
    assignments: tuple[str, ...],
    max_steps: int | None,
    save_every: int | None,
    resume: str,
    device: str | None,
) -> None:
    """Train a model. With several devices: torchrun --nproc-per-node N -m trainer train …"""
    given = {"dataset": data, "model.path": model, "run.max_steps": max_steps, "run.save_every": save_every}
    try:
        settings = _settings(file, assignments, {name: value for name, value in given.items() if value is not None})
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            _leave()  # all processes of this machine read the same: the first of them says it
        raise
    # torch and transformers take seconds to import: only when there is nothing wrong with what was given.
    from trainer import checkpoint
    from trainer.distributed import Said
    from trainer.train import Interrupted
    from trainer.train import train as run

    _quiet_libraries()
    try:
        run(settings, out, resume == "auto", device)
    except Said:
        _leave()
    except Interrupted as stop:
        if not _rank():
            _say(f"Stopped after step {stop.step}. The same command with --resume auto goes on from there.")
        sys.exit(130)
    except KeyboardInterrupt:
        if not _rank():
            _say(f"Stopped at once; {checkpoint.standing(out)}.")
        sys.exit(130)


def _settings(file: Path | None, assignments: tuple[str, ...], overrides: dict[str, Any]) -> Config:
    """The configuration, from a file and options. Raises UserError."""
    import yaml

    from trainer import config

    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: must be KEY=VALUE")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {assignment}: {value!r} is no valid YAML; quote what is text") from None
    return config.read(file, overrides)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory of the model.")
@click.option("--step", type=int, help="Which checkpoint; default: the newest.")
def export(run: Path, out: Path, step: int | None) -> None:
    """Write a checkpoint of RUN as a plain Hugging Face directory, adapters merged."""
    from trainer.export import export as write

    _quiet_libraries()
    click.echo(f"{out}: the model after step {write(run, out, step)}")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Default: RUN/curves.png.")
def plot(run: Path, out: Path | None) -> None:
    """Draw the curves of RUN."""
    from trainer.plot import plot as draw

    out = out or run / "curves.png"
    draw(run, out)
    click.echo(str(out))


if __name__ == "__main__":
    main()
