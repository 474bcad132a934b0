"""The command line: options in, messages out. What it does is done elsewhere, and imported when it is needed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from pipeline import __version__
from pipeline.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from jobs.run import Summary
    from pipeline.recipe import Recipe
    from pipeline.store.dataset import Dataset

Command = TypeVar("Command", bound=Callable[..., Any])

#: Seconds that a command has to stop in order.
_GRACE = 5.0


def main(command: click.Command | None = None) -> NoReturn:
    """Run the command line: 0 done, 1 something is wrong with the data, 2 with the command, 130 interrupted."""
    stop = _Stop()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in `nohup … &`
        signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)  # how a scheduler says Ctrl-C
    try:
        (command or cli)(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("Stopped. What was finished is kept: the same command goes on from there.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        click.echo(f"Error: {error.filename or 'output'}: {error.strerror or error}", err=True)
        sys.exit(2)
    sys.exit(0)


class _Stop:
    """Ends the command in order. Who presses Ctrl-C again at once has no patience with that, but it takes no longer."""

    def __init__(self) -> None:
        self._first: float | None = None

    def __call__(self, *_: object) -> None:
        now = time.monotonic()
        if self._first is None or now > self._first + _GRACE:
            self._first = now
            raise KeyboardInterrupt


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pipeline")
def cli() -> None:
    """Turn chat and agent corpora into stream grids for multi-stream language models.

    \b
    pipeline convert --input chats.jsonl --out grids    make a dataset
    pipeline validate grids                             check all of it
    pipeline show grids                                 look at a grid
    """


def _conversion_options(preview: bool) -> Callable[[Command], Command]:
    """The options of ``convert``. ``preview`` takes them all, so that one command can be edited into the other."""

    def of_a_run(text: str) -> str:
        return "As in convert, and ignored: nothing is written." if preview else text

    options = [
        click.option("--input", "inputs", multiple=True, required=True, metavar="PATH|GLOB|DIR|URL",
                     help="What to read; may be given several times. .jsonl, .json, .parquet, also .gz and .zst."),
        click.option("--recipe", default="wait-k", show_default=True, metavar="NAME|FILE",
                     help="How conversations become grids; 'pipeline recipes' lists them."),
        click.option("--tokenizer", default="builtin", show_default=True, metavar="NAME|PATH",
                     help="The model's tokenizer: a tokenizer.json, a directory with one, or a hub name."),
        click.option("--format", "format_name", metavar="NAME",
                     help="The corpus format; by default it is detected, file by file."),
        click.option("--messages-field", metavar="FIELD", help="The field that holds the messages, e.g. traj."),
        click.option("--max-rows", type=click.IntRange(min=1), metavar="N", help="The most rows that a grid may have."),
        click.option("--long", type=click.Choice(["quarantine", "truncate", "window"]),
                     help="What becomes of a conversation with more rows  [default: quarantine]"),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                     help="Override a recipe option, e.g. --set unit=token --set k=3."),
        click.option("--out", required=not preview, metavar="DIR",
                     help=of_a_run("Where the dataset goes: a directory or a URL.")),
        click.option("--plans", metavar="DIR",
                     help="Schedule the stored plans of this dataset again instead of planning."),
        click.option("--engine", default="none", show_default=True, metavar="none|vllm|URL",
                     help="What answers a planner that asks a model: vllm in the workers, or OpenAI-compatible servers "
                          "such as http://host:8000/v1, several with commas."),
        click.option("--model", metavar="NAME", help="The model that answers: a hub name, a directory, or a server's."),
        click.option("--engine-arg", "engine_args", multiple=True, metavar="KEY=VALUE",
                     help="An argument of the engine, e.g. --engine-arg tensor_parallel_size=4."),
        click.option("--concurrency", type=click.IntRange(min=1), metavar="N",
                     help="The most requests that one engine has at a time  [default: 128]"),
        click.option("--engine-timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
                     help="An engine that has not answered for so long counts as lost  [default: 600]"),
        click.option("--answers", metavar="DIR",
                     help="Where answers are kept, so that none is paid for twice  [default: OUT.answers]"),
        click.option("--workers", type=click.IntRange(min=1), metavar="N",
                     help=of_a_run("Worker processes  [default: one per CPU, GPU engine]")),
        click.option("--ray", default="auto", show_default=not preview, metavar="auto|local|off|ADDRESS",
                     help=of_a_run("off: in this process; local: start Ray here; auto: a running cluster, else what "
                                   "is fastest here.")),
        click.option("--limit", type=click.IntRange(min=1), metavar="N", default=3 if preview else None,
                     show_default=preview, help=f"{'Show' if preview else 'Read'} only the first N records."),
        click.option("--fresh", is_flag=True,
                     help=of_a_run("Start over: delete what earlier runs left in --out.")),
    ]  # fmt: skip

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@cli.command()
@_conversion_options(preview=False)
@click.pass_context
def convert(
    context: click.Context,
    inputs: tuple[str, ...],
    out: str,
    plans: str | None,
    workers: int | None,
    ray: str,
    fresh: bool,
    **options: Any,
) -> None:
    """Convert a corpus into a dataset of stream grids.

    Bad records go to quarantine, with a reason, and cost nothing but themselves. When it is stopped, by Ctrl-C or
    worse, the same command goes on from the last finished shard and gives the same bytes.
    """
    from jobs.run import RunOptions
    from pipeline.read.inputs import resolve_inputs

    if ray == "off" and (workers or 1) > 1:
        raise click.UsageError(f"--workers {workers} needs Ray: --ray off converts in this process alone")
    recipe = _recipe_for(context, plans, **options)
    _run(
        lambda: RunOptions(
            files=resolve_inputs(inputs),
            out=out,
            recipe=recipe,
            tokenizer=_tokenizer(options["tokenizer"]),
            plans=plans,
            engine=_engine(**options),
            answers=options["answers"],
            workers=workers,
            ray=ray,
            fresh=fresh,
        )
    )


@cli.command()
@_conversion_options(preview=True)
@click.option("--no-pager", is_flag=True, help="Write everything to the terminal at once.")
@click.pass_context
def preview(
    context: click.Context, inputs: tuple[str, ...], plans: str | None, limit: int, no_pager: bool, **options: Any
) -> None:
    """Convert a few records and show their grids; writes nothing.

    Takes every option of convert, and ignores those that say where and by whom the work is done.
    """
    from pipeline.look.preview import preview_lines, previews
    from pipeline.read.inputs import resolve_inputs
    from pipeline.recipe import engine_for
    from pipeline.store.plans import StoredPlans

    recipe = _recipe_for(context, plans, **options)
    tokenizer = _tokenizer(options["tokenizer"])
    files = resolve_inputs(inputs)
    if plans is not None:
        made = _open_plans(plans)
        stored = StoredPlans.open(made.place, made.manifest)
        found = previews(files, recipe, tokenizer, limit, lambda cut, _: stored.of(cut.file, cut.first, cut.count))
        _page(lambda width: preview_lines(found, width), no_pager)
        return
    spec = engine_for(recipe, _engine(**options), options["answers"])
    if spec is None:
        _page(lambda width: preview_lines(previews(files, recipe, tokenizer, limit), width), no_pager)
        return
    from pipeline.look.teacher import PreviewTeacher  # engines, prompts: not for who converts by rule

    with PreviewTeacher(recipe, spec, options["answers"], lambda text: click.echo(text, err=True)) as teacher:
        found = previews(files, recipe, tokenizer, limit, teacher.plan)
        _page(lambda width: preview_lines(found, width, teacher.lines), no_pager)


@cli.command()
@click.argument("recipe", metavar="NAME|FILE")
@click.option("--input", "inputs", multiple=True, required=True, metavar="PATH|GLOB|DIR|URL", help="As in convert.")
@click.option("--format", "format_name", metavar="NAME", help="As in convert.")
@click.option("--messages-field", metavar="FIELD", help="As in convert.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As in convert.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", default=1, show_default=True,
              help="Show the prompts of the first N records.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Write every call as one line of JSON.")
@click.option("--no-pager", is_flag=True, help="Write everything to the terminal at once.")
def prompt(recipe: str, inputs: tuple[str, ...], limit: int, as_json: bool, no_pager: bool, **options: Any) -> None:
    """Print what a recipe whose planner asks a model would send.

    No model is asked: where a later question depends on an earlier answer, some valid answer stands in.
    """
    from pipeline.look.teacher import prompt_lines, prompts
    from pipeline.read.inputs import resolve_inputs

    found = prompts(resolve_inputs(inputs), _recipe(recipe, **options), limit)
    if as_json:
        for record_id, calls, rejected in found:
            for call in calls:
                _print_json_line({"id": record_id, **call._asdict()})
            if rejected is not None:
                _print_json_line({"id": record_id, "reason": rejected.reason, "message": rejected.message})
    else:
        _page(lambda width: prompt_lines(found, width), no_pager)


@cli.command()
@click.argument("dataset", metavar="DIR")
@click.option("--strict", is_flag=True, help="Also fail on what is only odd: stray files, an input that is gone.")
@click.option("--json", "as_json", is_flag=True, help="Write the report as JSON.")
def validate(dataset: str, strict: bool, as_json: bool) -> None:
    """Check everything that can be checked; exit 0 only if all of it holds.

    Hashes, schema, token ids, spans, counts, every plan against its rows, and, where the input is still there, every
    text against its source, byte for byte.
    """
    from pipeline.store.validate import render
    from pipeline.store.validate import validate as check

    with _bar("checking shards") as progress:
        report = check(dataset, strict=strict, progress=progress)
    if as_json:
        _print_json(report)
    else:
        render(report, _console())
    sys.exit(0 if report.ok else 1)


@cli.command()
@click.argument("dataset", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Write the figures as JSON.")
def stats(dataset: str, as_json: bool) -> None:
    """Count: conversations, tokens per stream, rows, forward passes saved, delay of the answer."""
    from pipeline.look.stats import render
    from pipeline.look.stats import stats as count
    from pipeline.store.dataset import open_dataset

    figures = count(open_dataset(dataset))
    if as_json:
        _print_json(figures)
    else:
        render(figures, _console())


@cli.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Write the figures as JSON.")
def compare(a: str, b: str, as_json: bool) -> None:
    """Set two datasets of the same source side by side: rows saved, delay of the answer, where they differ."""
    from pipeline.look.compare import compare as measure
    from pipeline.look.comparison import render
    from pipeline.store.dataset import open_dataset

    figures = measure(open_dataset(a), open_dataset(b))
    if as_json:
        _print_json(figures)
    else:
        render(figures, _console())


@cli.command()
@click.argument("dataset", metavar="DIR")
@click.option("--id", "grid_id", metavar="ID", help="The grid to show, e.g. chats.jsonl:17  [default: the first]")
@click.option("--no-pager", is_flag=True, help="Write everything to the terminal at once.")
def show(dataset: str, grid_id: str | None, no_pager: bool) -> None:
    """Show one grid: a lane per stream, silence dim."""
    from pipeline.look.lines import grid_lines
    from pipeline.look.show import find_grid
    from pipeline.store.dataset import open_dataset

    opened = open_dataset(dataset)
    grid = find_grid(opened, grid_id)
    _page(lambda width: grid_lines(grid, width), no_pager)


@cli.command()
@click.argument("dataset", metavar="DIR")
@click.option("--out", required=True, metavar="PATH", help="The directory to write to.")
@click.option("--to", "form", type=click.Choice(["rows-jsonl"]), required=True,
              help="rows-jsonl: PATH/dataset.jsonl, the form that the paper's trainer reads.")  # fmt: skip
def export(dataset: str, out: str, form: str) -> None:
    """Write a dataset in another form."""
    from pipeline.look.export import export_rows_jsonl
    from pipeline.store.dataset import open_dataset

    opened = open_dataset(dataset)
    with _bar("writing grids") as progress:
        count = export_rows_jsonl(opened, out, lambda done: progress(done, len(opened)))
    click.echo(f"{count:,} grids in {out}/dataset.jsonl")


@cli.command()
@click.argument("dataset", metavar="DIR")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Worker processes  [default: one per CPU]")
@click.option("--ray", default="auto", show_default=True, metavar="auto|local|off|ADDRESS", help="As in convert.")
@click.option(
    "--engine",
    default="none",
    metavar="vllm|URL",
    help="What answers, where the one of the last run has moved; it must serve the same model.",
)
@click.option("--model", metavar="NAME", help="As in convert; only with --engine.")
@click.option(
    "--engine-arg", "engine_args", multiple=True, metavar="KEY=VALUE", help="As in convert; only with --engine."
)
@click.option("--answers", metavar="DIR", help="Where answers are kept, where that has moved.")  # fmt: skip
def retry(dataset: str, workers: int | None, ray: str, answers: str | None, **options: Any) -> None:
    """Convert again the shards that have records in quarantine.

    For records whose reason has gone since: a newer version reads more formats. A teacher that refused, or whose answers
    were all invalid, is asked again. The input must still be there.
    """
    from jobs.retry import quarantined, retry_options

    engine = _engine(concurrency=None, engine_timeout=None, **options)
    before = quarantined(dataset)
    _run(lambda: retry_options(dataset, workers, ray, engine, answers), before)


@cli.command()
def recipes() -> None:
    """List recipes and layouts."""
    from pipeline.look.recipes import render

    render(_console())


def _recipe(recipe: str, settings: Sequence[str], **options: Any) -> Recipe:
    """The recipe that was asked for."""
    from pipeline.recipe import load_recipe

    return load_recipe(recipe, settings, _overrides(**options))


def _recipe_for(context: click.Context, plans: str | None, **options: Any) -> Recipe:
    """The recipe that was asked for; with ``--plans`` and no ``--recipe``, the one that made them."""
    from pipeline.recipe import is_planner_setting

    given = context.get_parameter_source("recipe") is click.core.ParameterSource.COMMANDLINE
    recipe = _recipe(**options) if plans is None or given else _recipe_of(plans, **options)
    _check_long(recipe, options["long"], options["settings"])
    if plans is not None:
        for setting in options["settings"]:
            if is_planner_setting(setting, recipe.planner):
                raise click.UsageError(
                    f"--set {setting}: --plans schedules stored plans, and this is an option of their planner; "
                    f"leave it out, or convert without --plans"
                )
    return recipe


def _check_long(recipe: Recipe, long: str | None, settings: Sequence[str]) -> None:
    """Whoever says what becomes of long conversations has to say which are long."""
    asked = [f"--long {long}"] * (long is not None)
    asked += [f"--set {setting}" for setting in settings if setting.startswith("rows.long=")]
    if asked and recipe.rows.max is None and recipe.rows.long != "quarantine":
        raise click.UsageError(f"{asked[0]}: does nothing without a limit to the rows of a grid; add --max-rows N")


def _recipe_of(dataset: str, settings: Sequence[str], **options: Any) -> Recipe:
    """The recipe of a finished dataset, but for how many records it read."""
    from pipeline.recipe import from_manifest

    made = _open_plans(dataset).manifest
    return from_manifest(made.recipe, made.layout, settings, {"read.limit": None} | _overrides(**options))


def _open_plans(dataset: str) -> Dataset:
    from pipeline.store.dataset import open_dataset

    try:
        return open_dataset(dataset)
    except UserError as error:
        raise UserError(f"--plans {error}") from None


def _overrides(
    format_name: str | None,
    messages_field: str | None,
    max_rows: int | None = None,
    long: str | None = None,
    limit: int | None = None,
    **_: Any,
) -> dict[str, Any]:
    """What options of their own say about the recipe."""
    given = {
        "read.format": format_name,
        "read.messages_field": messages_field,
        "read.limit": limit,
        "rows.max": max_rows,
        "rows.long": long,
    }
    return {key: value for key, value in given.items() if value is not None}


def _engine(
    engine: str,
    model: str | None,
    engine_args: Sequence[str],
    concurrency: int | None,
    engine_timeout: float | None,
    **_: Any,
) -> Any:
    from pipeline.engines.spec import parse_spec

    return parse_spec(engine, model, engine_args, concurrency, engine_timeout)


def _tokenizer(given: str) -> Any:
    from pipeline.grid.tokens import load_tokenizer

    return load_tokenizer(given)


def _run(make_options: Callable[[], Any], retried: int | None = None) -> None:
    from jobs.progress import Progress
    from jobs.run import run

    options = make_options()
    with Progress(_console(stderr=True)) as progress:
        summary = run(options, progress)
    _summarise(summary, retried)


def _summarise(summary: Summary, retried: int | None) -> None:
    from pipeline.look.summary import render

    render(summary, _console(), retried)
    sys.exit(0 if summary.manifest.counts.converted else 1)


def _page(lines: Callable[[int], Iterator[Text]], no_pager: bool) -> None:
    """Bring lines (made for a width) to the terminal as they come, through a pager where it is one."""
    from pipeline.look.show import as_strings

    console = _console()
    text = as_strings(lines(console.width), console)
    if console.is_terminal and not no_pager:
        os.environ.setdefault("LESS", "-FRX")  # colours as colours; no pager for what fits on the screen
        click.echo_via_pager(text)  # click knows which pagers take colours
        return
    try:
        for line in text:
            click.echo(line, nl=False, color=True)
    except BrokenPipeError:
        _nobody_reads(sys.stdout)


def _nobody_reads(stream: IO[str]) -> None:
    """The reader has seen enough, as in `pipeline show | head`: what is still on its way there goes nowhere."""
    nobody = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nobody, stream.fileno())
    os.close(nobody)


@contextmanager
def _bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, where stderr is a terminal; it is told how much is done, and of how much."""
    from rich.progress import Progress as Bar

    console = _console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    # rich would end the command, with 1: but that stands for something wrong with the data.
    console.on_broken_pipe = lambda: _nobody_reads(console.file)  # type: ignore[method-assign]
    return console


def _print_json_line(document: Any) -> None:
    import msgspec

    click.echo(msgspec.json.encode(document).decode())


def _print_json(document: Any) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))


if __name__ == "__main__":
    main()
