"""What a run did, on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline.errors import Reason
from pipeline.store.manifest import Manifest
from pipeline.store.place import Place

#: Reasons that are told with an example; all of it is to fit on a screen.
_MOST_REASONS = 4


class Ran(Protocol):
    """What the summary needs to know of a run."""

    @property
    def manifest(self) -> Manifest: ...
    @property
    def out(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def converted_shards(self) -> int: ...
    @property
    def lost_attempts(self) -> int: ...
    @property
    def teacher(self) -> dict[str, Any] | None: ...


def _examples(ran: Ran) -> dict[str, str]:
    """For every reason, its first record and what was wrong with it."""
    found: dict[str, str] = {}
    place = Place(ran.out)
    for shard in ran.manifest.shards:
        if shard.quarantine is None or shard.counts.quarantine_reasons.keys() <= found.keys():
            continue
        for line in (place.get(shard.quarantine.path) or b"").splitlines():
            document = msgspec.json.decode(line)
            found.setdefault(document["reason"], f"{document['id']}: {document['message']}")
    return found


def _asking(cost: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What asking a model has cost: numbers and words."""
    revision = f" ({cost['revision']})" if cost["revision"] else ""
    retried = f", {cost['retried']:,} asked again" if cost["retried"] else ""
    yield f"{cost['accepted']:,}", f"answers accepted{retried}, of {cost['model']}{revision}"
    answers = escape(cost["answers"])
    if cost["from_store"]:
        yield f"{cost['from_store']:,}", f"asked for at no cost: stored in {answers}"
    if cost["damaged_answers"]:
        yield f"{cost['damaged_answers']:,}", f"[yellow]answers in {answers} are damaged and were not used[/]"
    if not cost["asked"]:
        return
    cached = f", {cost['cached_share']:.0%} from the prefix cache" if cost["cached_share"] is not None else ""
    yield f"{cost['prompt_tokens_per_conversation']:,.0f}", f"prompt tokens a conversation{cached}"
    yield (
        f"{cost['output_tokens_per_conversation']:,.0f}",
        f"output tokens a conversation, {cost['output_tokens_per_second']:,.0f} a second, engine occupancy "
        f"{cost['engine_occupancy']:.0%}",
    )
    if cost["gpu_seconds_per_1000_conversations"] is not None:
        yield f"{cost['gpu_seconds_per_1000_conversations']:,.0f}", "GPU seconds per thousand conversations"
    if cost["engine_restarts"]:
        yield f"{cost['engine_restarts']:,}", "[yellow]times an engine was lost and asked anew[/]"


def render(ran: Ran, console: Console, retried: int | None = None) -> None:
    """Print the counts, why records were rejected, and what to do next.

    ``retried``: how many records were in quarantine before, where the run was to try them again.
    """
    made = ran.manifest
    counts = made.counts
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_row(f"{counts.read:,}", "records read")
    table.add_row(f"{counts.converted:,}", f"converted: {counts.rows:,} grids, {counts.tokens:,} tokens")
    if counts.truncated:
        table.add_row(f"{counts.truncated:,}", "of them cut short (rows.max)")
    if counts.filtered:
        table.add_row(f"{counts.filtered:,}", "filtered out")
    if counts.quarantined:
        table.add_row(f"{counts.quarantined:,}", f"[yellow]quarantined, see {Place(ran.out)}/quarantine/[/]")
        reasons = sorted(made.quarantine_reasons.items(), key=lambda item: (-item[1], item[0]))
        examples = _examples(ran)
        for reason, count in reasons[:_MOST_REASONS]:
            table.add_row("", f"[yellow]{count:,} {reason}[/]")
            if reason == Reason.CORRUPT_FILE:
                table.add_row(
                    "", Text("  the rest of the file is lost from there on, however many records it held", "bold red")
                )
            if reason in examples:
                table.add_row("", Text(f"  e.g. {examples[reason]}", style="dim"))
        if others := reasons[_MOST_REASONS:]:
            named = ", ".join(f"{count:,} {reason}" for reason, count in others)
            table.add_row("", f"[yellow]and {named}[/]")
    for role, count in counts.dropped_parts.items():
        table.add_row(f"{count:,}", f"{role} parts dropped, as layout {made.layout['name']} says")
    if counts.silence_in_content:
        table.add_row(
            f"{counts.silence_in_content:,}", "[yellow]content tokens are the token that stands for silence[/]"
        )
    if ran.teacher is not None and ran.converted_shards:
        for number, words in _asking(ran.teacher):
            table.add_row(number, words)
    console.print(table)
    shards = len(made.shards)
    kept = shards - ran.converted_shards
    work = "nothing to do: it was finished already" if not ran.converted_shards else f"{ran.seconds:.1f} s"
    if kept and ran.converted_shards:
        work += f", {kept} of {shards} shards were there already"
    if ran.lost_attempts:
        work += f", {ran.lost_attempts} attempts lost with their workers"
    console.print(f"{Place(ran.out)}: {shards} shard{'s' if shards != 1 else ''}, {work}")
    if retried:
        console.print(_recovered(retried, retried - counts.quarantined))
    if not counts.converted:
        console.print("[bold red]Nothing could be converted.[/] The quarantine files say why, record by record.")


def _recovered(retried: int, recovered: int) -> str:
    """What trying again has changed, in one sentence."""
    if recovered <= 0:
        records = "the record" if retried == 1 else f"the {retried:,} records"
        return f"[yellow]Nothing was recovered: {records} in quarantine still cannot be converted, for the reasons above.[/]"
    return f"Recovered {recovered:,} of {retried:,} in quarantine."
