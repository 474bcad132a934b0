"""What a person sees of a run: one bar on a terminal, plain lines with the same facts elsewhere."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from pipeline.store.counts import Counts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from jobs.bar import FactsBar
    from jobs.shard import Done
    from jobs.teaching import Taught
    from pipeline.teach.counters import Counters as Asked

#: Seconds between plain lines; the first comes sooner, so that a log shows that something happens.
_EVERY = 10.0
_FIRST = 3.0

#: Seconds after which the same trouble is told once more; what changes in it from second to second are numbers.
_AGAIN = 60.0
_DIGITS = re.compile(r"[0-9.]+")

#: Lines of the answer store that are told of in words.
_MOST_FAULTS = 5


class Progress:
    """Counts what is done, and shows it on ``console`` (None: shows nothing)."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._bar: FactsBar | None = None
        self._task: TaskID | None = None
        self._doing = ""
        self._places = 1
        self._began = time.monotonic()
        #: When a model was first asked; None before, and where none is.
        self._asking_since: float | None = None
        self._next_line = 0.0
        self._total = 0
        self._bytes = 0
        self._bytes_now = 0
        self.counts = Counts()
        #: Shards that an earlier run had finished.
        self.kept_shards = 0
        #: What this run has converted; not the shards that an earlier one had finished.
        self.counts_now = Counts()
        #: Tokens converted by this run.
        self.tokens_now = 0
        #: The largest memory of any worker, in bytes.
        self.peak_rss = 0
        #: How far every worker's teacher is, those that have died included.
        self._teachers: dict[str, Taught] = {}
        #: Lines of the answer store that no teacher could use, those that have been told of in words.
        self.faults: dict[str, None] = {}
        #: Why engines did not answer, and when that was last told.
        self._told: dict[str, float] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since conversion began."""
        return time.monotonic() - self._began

    @property
    def working_seconds(self) -> float:
        """The same, without the start of an engine, which takes a while and says nothing of what comes."""
        return time.monotonic() - (self._asking_since or self._began)

    def begin_scan(self, total: int, files: int) -> None:
        """Hashing of all inputs begins: ``total`` bytes."""
        self._begin(f"reading {files} file{'s' if files != 1 else ''}", total)

    def scanned(self, count: int) -> None:
        """``count`` more bytes have been hashed."""
        self._advance(count)

    def begin_workers(self) -> None:
        """Workers are being started, which takes seconds."""
        self._begin("starting workers", 0)

    def begin_convert(self, total: int, where: str, places: int = 1) -> None:
        """Conversion of ``total`` bytes of input begins. ``places``: the requests that all engines together have room for."""
        self._begin("converting", total)
        self._places = places
        if self._console is not None and not self._console.is_terminal:
            self.notice(f"converting {_size(total)} of input, {where}")

    def kept(self, counts: Counts, input_bytes: int) -> None:
        """A shard was there already."""
        self.kept_shards += 1
        self.counts += counts
        self._bytes_now -= input_bytes  # not work of this run: it does not count for the ETA
        self._advance(input_bytes)

    def finished(self, done: Done) -> None:
        """A shard has been converted."""
        self.counts += done.shard.counts
        self.counts_now += done.shard.counts
        self.tokens_now += done.shard.tokens
        self.peak_rss = max(self.peak_rss, done.peak_rss)
        if done.taught is not None:
            self._hear(done.taught)
        self._advance(done.input_bytes)

    def taught(self, taught: Taught) -> None:
        """A worker's teacher has said how far it is."""
        self._hear(taught)
        self._advance(0)

    def _hear(self, taught: Taught) -> None:
        known = self._teachers.get(taught.worker)
        if known is None or known.number <= taught.number:  # what was said first may be heard last
            self._teachers[taught.worker] = taught
            if self._asking_since is None and taught.counters.flight_seconds:
                self._asking_since = time.monotonic() - taught.counters.busy_seconds
            if taught.trouble:
                self._tell(taught.trouble)
        for fault in taught.faults:
            if fault not in self.faults and len(self.faults) < _MOST_FAULTS:
                self.notice(f"an answer that was kept cannot be used, and is asked for again if needed: {fault}")
                if len(self.faults) == _MOST_FAULTS - 1:
                    self.notice("further ones are only counted")
                self.faults[fault] = None

    def _tell(self, trouble: str) -> None:
        """Say why an engine does not answer, once in a while: all workers say so, each second."""
        kind, now = _DIGITS.sub("", trouble), time.monotonic()
        if now >= self._told.get(kind, -_AGAIN) + _AGAIN:
            self._told[kind] = now
            self.notice(f"the engine does not answer: {trouble}; it is tried again")

    @property
    def fault_count(self) -> int:
        """The lines of the answer store that could not be used: at least so many, as workers find the same ones."""
        return max([taught.fault_count for taught in self._teachers.values()] + [len(self.faults)])

    @property
    def asked(self) -> Asked | None:
        """What asking models has cost so far, over all workers; None where none was asked."""
        counters = [taught.counters for taught in self._teachers.values()]
        return sum(counters[1:], counters[0]) if counters else None

    @property
    def occupancy(self) -> float:
        """How full the engines have been: requests in flight, of those that they have room for, averaged over time."""
        asked = self.asked
        places = self.working_seconds * self._places
        return min(asked.flight_seconds / max(places, 1e-9), 1.0) if asked is not None else 0.0

    @property
    def _done_bytes(self) -> float:
        """Bytes of input that are done, those included of shards that are planned in part."""
        return self._bytes + sum(taught.planned_bytes for taught in self._teachers.values())

    def notice(self, text: str) -> None:
        """Say something that the user should know now."""
        if self._console is not None:
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _begin(self, doing: str, total: int) -> None:
        self._doing, self._total, self._bytes, self._bytes_now = doing, total, 0, 0
        self._began = time.monotonic()
        self._next_line = self._began + _FIRST
        if self._console is None or not self._console.is_terminal:
            return
        from jobs.bar import FactsBar

        if self._bar is not None:
            self._bar.stop()
        self._bar = FactsBar(self._console)
        self._task = self._bar.add_task(doing, total=total or None, facts="")
        self._bar.start()

    def _advance(self, count: int) -> None:
        self._bytes += count
        self._bytes_now += count
        if self._bar is not None and self._task is not None:
            asked = self.asked
            facts = self._facts() if asked is None else ""
            self._bar.below = self._asking(asked) if asked is not None else ()
            self._bar.update(self._task, completed=min(self._done_bytes, self._total), facts=facts)
        elif self._console is not None and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _EVERY
            share = min(self._done_bytes / max(self._total, 1), 1.0)
            asked = self.asked
            facts = self._facts() if asked is None else " · ".join(self._asking(asked))
            said = ", ".join(fact for fact in (facts, self._remaining()) if fact)
            self.notice(f"{self._doing}: {share:.0%}, {said}")

    def _facts(self) -> str:
        if self._doing != "converting":
            return ""
        rate = self.tokens_now / max(self.seconds, 1e-9)
        return f"{self.counts.rows:,} grids · {_count(rate)} tokens/s · {self.counts.quarantined:,} quarantined"

    def _asking(self, asked: Asked) -> tuple[str, ...]:
        """The facts where models are asked, at which conversion itself takes no time. Each fits 80 columns."""
        if not asked.accepted + asked.rejected + asked.in_flight:
            return ("starting the engine",)
        seconds = max(self.working_seconds, 1e-9)
        prompt, cached, output = asked.prompt_tokens, asked.cached_tokens, asked.output_tokens
        lost = f" · lost {asked.restarts} time{'s' if asked.restarts > 1 else ''}" if asked.restarts else ""
        return (
            f"{asked.accepted:,} accepted · {asked.retried:,} retried · {asked.rejected:,} rejected · "
            f"{self.counts.quarantined:,} quarantined",
            f"tokens/s: {_count(prompt / seconds)} prompt ({_count(cached / seconds)} cached), "
            f"{_count(output / seconds)} output",
            f"engine: {asked.in_flight} in flight · occupancy {self.occupancy:.0%}{lost}",
        )

    def _remaining(self) -> str:
        now = self._bytes_now + self._done_bytes - self._bytes
        if now <= 0:
            return ""
        seconds = int(self.working_seconds * max(self._total - self._done_bytes, 0) / now)
        return f"ETA {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _count(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k" if value >= 1e3 else f"{value:.0f}"
