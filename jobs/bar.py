"""A progress bar with lines of facts below it, where they would not fit beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

_BETWEEN = " · "


class FactsBar(Progress):
    """One task, shown until it is stopped."""

    def __init__(self, console: Console) -> None:
        #: What stands below the bar: on one line where it is wide enough, else each on its own.
        self.below: Sequence[str] = ()
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            expand=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is shown now; called by a thread of rich's own, several times a second."""
        yield self.make_tasks_table(self.tasks)
        if self.below:
            whole = _BETWEEN.join(self.below)
            for line in [whole] if cell_len(whole) <= self.console.width else self.below:
                yield Text(line, no_wrap=True, overflow="ellipsis")
