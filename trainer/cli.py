"""The command line of the trainer: options in, messages out."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from pipeline.errors import UserError


def main() -> NoReturn:
    """Run the command line: 0 done, 2 something is wrong that a user can mend, 130 interrupted."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("Stopped at once; the last checkpoint stands.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        rank = os.environ.get("RANK")  # under torchrun every process says what it met
        click.echo(f"Error{'' if rank is None else f' in process {rank}'}: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        click.echo(f"Error: {error.filename or 'output'}: {error.strerror or error}", err=True)
        sys.exit(2)
    sys.exit(0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
    import yaml

    from trainer import config

    given = {"dataset": data, "model.path": model, "run.max_steps": max_steps, "run.save_every": save_every}
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: must be KEY=VALUE")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {assignment}: {value!r} is no valid YAML; quote what is text") from None
    settings = config.read(file, overrides)
    # torch and transformers take seconds to import: only when there is nothing wrong with what was given.
    import transformers

    from trainer.train import Interrupted
    from trainer.train import train as run

    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
    for library, level in {
        "transformers": "ERROR",
        "torch": "ERROR",
        "httpx": "ERROR",
        "trainer.data": "WARNING",
    }.items():
        logging.getLogger(library).setLevel(level)
    transformers.utils.logging.disable_progress_bar()
    try:
        run(settings, out, resume == "auto", device)
    except Interrupted as stop:
        if first:
            click.echo(
                f"Stopped after step {stop.step}. The same command with --resume auto goes on from there.", err=True
            )
        sys.exit(130)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory of the model.")
@click.option("--step", type=int, help="Which checkpoint; default: the newest.")
def export(run: Path, out: Path, step: int | None) -> None:
    """Write a checkpoint of RUN as a plain Hugging Face directory, adapters merged."""
    from trainer.export import export as write

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
