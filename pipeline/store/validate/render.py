"""A validation report for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from pipeline.store.validate.report import Found, Report


def render(report: Report, console: Console) -> None:
    """Say what is wrong, where and how often; or what was checked."""
    for problem in report.problems:
        style = "bold red" if problem.level == "error" else "yellow"
        times = f"{problem.count:,}×" if problem.count > 1 else ""
        console.print(Text.assemble((f"{problem.code} {times}".rstrip(), style), f"  {problem.meaning}"))
        for place in problem.places:
            console.print(Text("    " + _sentence(place)), soft_wrap=True)
        if problem.count > len(problem.places):
            console.print(Text(f"    … and {problem.count - len(problem.places):,} more", style="dim"))
    _summary(report, console)


def _sentence(place: Found) -> str:
    where = ", ".join(text for text in (place.file, place.id, place.where) if text)
    if place.expected and place.found:
        return f"{where}: expected {place.expected}, found {place.found}"
    said = place.found or (f"expected {place.expected}" if place.expected else "")
    return f"{where}: {said}" if said else where


def _summary(report: Report, console: Console) -> None:
    checked = report.checked
    errors = sum(problem.count for problem in report.problems if problem.level == "error")
    if report.ok:
        console.print(Text.assemble(("Valid", "bold green"), f": {report.dataset}"))
    else:
        plural = "" if errors == 1 else "s"
        console.print(Text.assemble(("Not valid", "bold red"), f": {report.dataset}: {errors:,} problem{plural}"))
        return
    lines = [
        (checked.shards, "shards: files, hashes, schema, counts"),
        (checked.grids, "grids: ids, sources, parts, rows"),
        (checked.tokens, f"tokens in {checked.spans:,} spans: order, control tokens, end markers, UTF-8"),
        (
            checked.segments,
            f"segments with {checked.dependencies:,} dependencies: kept, none later than need be",
        ),
        (checked.quarantined, "quarantined records: reasons, hashes"),
        (checked.compared, "records compared with their source, byte for byte"),
    ]
    for amount, what in lines:
        if amount:
            console.print(Text(f"  {amount:>14,}  {what}"), soft_wrap=True)
