"""Two datasets side by side: the same as counting conversation by conversation, and what is said of it."""

from __future__ import annotations

import io
import json
import re
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_grids import Drawn, Piece, grids, recipe, write
from rich.console import Console
from running import chat, pipeline, write_lines

from pipeline.errors import UserError
from pipeline.look.compare import MOST_APART, compare
from pipeline.look.comparison import Comparison, render
from pipeline.plan.turns import turn_starts
from pipeline.read.conversation import Part
from pipeline.store.dataset import Dataset, Grid, open_dataset

RECIPE = recipe()
NUMBER = RECIPE.layout.index()


# What it is to be, counted one by one


class Seen(NamedTuple):
    """What a dataset holds of one conversation."""

    id: str
    rows: int
    tokens: dict[str, int]
    from_start: list[int]
    from_end: list[int]

    @property
    def begins(self) -> float | None:
        return mean(self.from_start) if self.from_start else None


def one_by_one(dataset: Dataset) -> dict[tuple[str, int, bytes], Seen]:
    """Every conversation by its source."""
    seen: dict[tuple[str, int, bytes], Seen] = {}
    for grid in dataset:
        source = grid.source
        key = (source["file"], source["record"], source["sha256"])
        before = seen.get(key, Seen(grid.id, 0, {}, [], []))
        tokens = dict(before.tokens)
        for span in grid.spans:
            tokens[span.stream] = tokens.get(span.stream, 0) + len(span.tokens)
        starts, ends = delays(grid)
        seen[key] = Seen(
            before.id, before.rows + grid.num_rows, tokens, before.from_start + starts, before.from_end + ends
        )
    return seen


def delays(grid: Grid) -> tuple[list[int], list[int]]:
    """For every turn with a user part and an answer: rows from the input's first and last row to the answer's first."""
    parts = grid.parts
    starts = turn_starts([Part(part.role, "", 0) for part in parts])  # type: ignore[arg-type]
    from_start, from_end = [], []
    for first, stop in zip(starts, [*starts[1:], len(parts)], strict=False):
        said = {n: [s for s in grid.spans if s.part == n] for n in range(first, stop)}
        answers = [n for n in said if parts[n].role == "answer" and said[n]]
        users = [n for n in said if parts[n].role == "user" and said[n] and answers and n < answers[0]]
        if users:
            begun = min(span.start for span in said[answers[0]])
            from_start.append(begun - min(span.start for n in users for span in said[n]))
            from_end.append(begun - max(span.start + len(span.tokens) - 1 for span in said[users[-1]]))
    return from_start, from_end


def check(found: Comparison, a: Dataset, b: Dataset) -> None:
    """That the figures are those of counting one by one."""
    ours, theirs = one_by_one(a), one_by_one(b)
    pairs = [(ours[key], theirs[key]) for key in ours if key in theirs]
    assert found.common == len(pairs)
    for side, dataset, every, number in ((found.a, a, ours, 0), (found.b, b, theirs, 1)):
        common = [pair[number] for pair in pairs]
        assert side.only_here == len(every) - len(pairs)
        assert side.rows == sum(one.rows for one in common)
        assert side.tokens == sum(sum(one.tokens.values()) for one in common)
        assert {s.name: s.tokens for s in side.streams} == {
            s.name: sum(one.tokens.get(s.name, 0) for one in common) for s in dataset.layout.streams
        }
        cells = side.rows * len(dataset.layout.streams)
        assert side.density == (pytest.approx(side.tokens / cells) if cells else 0)
        turns = [row for one in common for row in one.from_end]
        if not turns:
            assert side.delay is None
            continue
        assert side.delay is not None and side.delay.turns == len(turns)
        assert side.delay.median_from_end == median(turns)
        assert side.delay.median_from_start == median([row for one in common for row in one.from_start])
        assert side.delay.early == pytest.approx(mean(row <= 0 for row in turns))
    assert found.rows is not None and found.rows_saved == found.a.rows - found.b.rows
    assert msgspec.structs.astuple(found.rows) == thirds([y.rows - x.rows for x, y in pairs])
    ratios = [y.rows / x.rows for x, y in pairs if x.rows]
    assert found.median_ratio == (pytest.approx(median(ratios)) if ratios else None)
    begins = [(x.begins, y.begins) for x, y in pairs]
    answered = thirds([round(y - x, 6) for x, y in begins if x is not None and y is not None])
    assert (found.answer is None) == (answered == (0, 0, 0))
    assert found.answer is None or msgspec.structs.astuple(found.answer) == answered
    far = sorted((abs(x.rows - y.rows) for x, y in pairs), reverse=True)[:MOST_APART]
    assert [abs(one.a.rows - one.b.rows) for one in found.apart] == far[: len(found.apart)]
    assert not any(far[len(found.apart) :])
    by_id = {x.id: (x, y) for x, y in pairs}
    for one in found.apart:
        x, y = by_id[one.a.id]
        assert (one.b.id, one.a.rows, one.b.rows) == (y.id, x.rows, y.rows)
        assert (one.a.answer_begins, one.b.answer_begins) == (
            x.begins if x.begins is None else pytest.approx(x.begins),
            y.begins if y.begins is None else pytest.approx(y.begins),
        )


def thirds(values: list[float]) -> tuple[int, int, int]:
    return sum(v < 0 for v in values), sum(v == 0 for v in values), sum(v > 0 for v in values)


def cut(drawn: list[Drawn], places: list[int]) -> list[list[Drawn]]:
    """The grids in shards that end at these places."""
    ends = sorted({min(place, len(drawn)) for place in places} | {len(drawn)})
    return [drawn[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


SOME = st.lists(grids(RECIPE.layout), min_size=1, max_size=6)
CUTS = st.lists(st.integers(0, 6), max_size=3)


@settings(max_examples=25)
@given(SOME, SOME, CUTS, CUTS)
def test_it_is_what_counting_one_by_one_gives(
    a: list[Drawn], b: list[Drawn], cuts_a: list[int], cuts_b: list[int]
) -> None:
    """However the records are cut into shards."""
    with tempfile.TemporaryDirectory() as folder:
        one = write(Path(folder, "a"), RECIPE, cut(a, cuts_a))
        other = write(Path(folder, "b"), RECIPE, cut(b, cuts_b))
        found = compare(one, other)
        check(found, one, other)
        assert found.differences == []
        back = compare(other, one)
        assert (back.a, back.b) == (found.b, found.a)


# Datasets that a converter made


def convert(corpus: Path, out: Path, *options: str) -> Dataset:
    ran = pipeline("convert", "--input", corpus, "--out", out, "--ray", "off", *options)
    assert ran.code == 0, ran.output
    return open_dataset(str(out))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of 30 conversations, of one to three turns; some records are broken."""
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("one.jsonl", "two.jsonl"):
        with (folder / name).open("w") as stream:
            for number in range(30):
                turns: list[Any] = [chat(number + turn)["messages"] for turn in range(1 + number % 3)]
                messages = [message for turn in turns for message in turn]
                stream.write(json.dumps({"messages": messages}) + "\n" if number % 11 else "{\n")
    return folder


@pytest.fixture(scope="module")
def sequential(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    options = ("--recipe", "sequential", "--set", "layout=chat-2", "--set", "shard.records=7")
    return convert(corpus, tmp_path_factory.mktemp("sequential") / "out", *options)


@pytest.fixture(scope="module")
def wait_k(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    options = ("--set", "layout=chat-2", "--set", "unit=token", "--set", "shard.records=5")
    return convert(corpus, tmp_path_factory.mktemp("wait-k") / "out", *options)


def test_planners(sequential: Dataset, wait_k: Dataset) -> None:
    """wait-k begins to answer while it reads, and so needs fewer rows for every conversation."""
    found = compare(sequential, wait_k)
    check(found, sequential, wait_k)
    assert found.common == 54 and found.a.only_here == found.b.only_here == 0
    assert found.rows is not None and found.answer is not None and found.rows_saved is not None
    assert found.rows.fewer == found.answer.fewer == 54 and found.rows_saved > 0
    assert found.a.delay is not None and found.a.delay.median_from_end == 2 and found.a.delay.early == 0
    assert found.b.delay is not None and found.b.delay.median_from_start == 2 and found.b.delay.early == 1
    assert 'recipe.planner: "sequential" in A, "wait-k" in B' in found.differences
    assert 'recipe.options.unit: none in A, "token" in B' in found.differences
    assert not [line for line in found.differences if line.startswith(("layout", "inputs", "tokenizer"))]


def test_windows_of_one_record_are_added_up(corpus: Path, sequential: Dataset, wait_k: Dataset, tmp_path: Path) -> None:
    options = ("--set", "layout=chat-2", "--recipe", "sequential", "--max-rows", "150", "--long", "window")
    windows = convert(corpus, tmp_path / "out", *options)
    assert len(windows) > len(sequential)
    found = compare(windows, sequential)
    check(found, windows, sequential)
    assert found.common == 54
    assert found.rows_saved == 0  # one thing at a time, so that a cut between turns costs nothing
    found = compare(windows, wait_k)
    check(found, windows, wait_k)
    ids = [one.a.id for one in found.apart]
    assert [one.b.id + "#0" for one in found.apart] == ids
    shown = pipeline("show", tmp_path / "out", "--id", ids[0], "--no-pager")
    assert shown.code == 0, shown.output


def test_only_in_one_of_them(corpus: Path, sequential: Dataset, tmp_path: Path) -> None:
    some = convert(corpus, tmp_path / "out", "--set", "layout=chat-2", "--limit", "40")
    found = compare(some, sequential)
    check(found, some, sequential)
    assert found.common == 36 and found.b.only_here == 18 and found.a.only_here == 0


def test_records_that_have_changed_are_not_the_same(corpus: Path, sequential: Dataset, tmp_path: Path) -> None:
    """The same file and number, other bytes; what can no longer be read is in quarantine."""
    edited = tmp_path / "corpus"
    edited.mkdir()
    for path in corpus.iterdir():
        (edited / path.name).write_bytes(path.read_bytes())
    lines = (edited / "one.jsonl").read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace("Question 3", "Question III")
    lines[4] = "{\n"
    (edited / "one.jsonl").write_text("".join(lines))
    other = convert(edited, tmp_path / "out", "--recipe", "sequential", "--set", "layout=chat-2")
    found = compare(sequential, other)
    check(found, sequential, other)
    assert (found.common, found.changed, found.a.only_here, found.b.only_here) == (52, 1, 2, 1)
    assert "inputs: one.jsonl is another file in B: its bytes differ" in found.differences
    text = shown(found)
    assert "1 record of the same number, but with other bytes" in text
    assert "only in A" in text and "B has 7 in quarantine" in text


def test_nothing_in_common(corpus: Path, sequential: Dataset, tmp_path: Path) -> None:
    other = convert(write_lines(tmp_path / "three.jsonl", 4), tmp_path / "three")
    with pytest.raises(UserError, match=r"the first was made of one\.jsonl, two\.jsonl, the second of three\.jsonl"):
        compare(sequential, other)
    write_lines(tmp_path / "corpus" / "one.jsonl", 30, words=80)
    with pytest.raises(UserError, match="27 records have the same file and number but other bytes"):
        compare(sequential, convert(tmp_path / "corpus" / "one.jsonl", tmp_path / "changed"))
    ran = pipeline("compare", sequential.place.path(), tmp_path / "three")
    assert ran.code == 2 and "nothing to compare" in ran.output
    assert pipeline("compare", sequential.place.path(), tmp_path / "nothing").code == 2


def test_everything_in_quarantine(tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "chats.jsonl", 3)
    one = convert(corpus, tmp_path / "one")
    ran = pipeline("convert", "--input", corpus, "--out", tmp_path / "two", "--ray", "off", "--max-rows", "2")
    assert ran.code == 1
    with pytest.raises(UserError, match="files in common, but no record that was converted in both"):
        compare(one, open_dataset(str(tmp_path / "two")))


def test_other_tokenizers_are_not_compared_row_by_row(corpus: Path, sequential: Dataset, tmp_path: Path) -> None:
    """What is a ratio within each of them still is shown."""
    tokenizer = json.loads(sequential.tokenizer.json)
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:100]
    (tmp_path / "small.json").write_text(json.dumps(tokenizer))
    options = ("--recipe", "sequential", "--set", "layout=chat-2", "--tokenizer", str(tmp_path / "small.json"))
    other = convert(corpus, tmp_path / "out", *options)
    found = compare(sequential, other)
    assert not found.comparable
    assert (found.rows, found.answer, found.rows_saved, found.median_ratio, found.apart) == (None, None, None, None, [])
    assert 'tokenizer: "builtin" in A, "small.json" in B' in found.differences
    assert found.common == 54 and found.b.tokens > found.a.tokens
    assert found.b.density > 0 and found.b.tokens_per_row == pytest.approx(found.b.tokens / found.b.rows)
    text = shown(found)
    assert "The tokenizers differ" in text and "faster" not in text and "pipeline show" not in text


# In a terminal


def shown(found: Comparison, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        render(found, console)
    return captured.get()


def test_one_with_itself(sequential: Dataset) -> None:
    found = compare(sequential, sequential)
    check(found, sequential, sequential)
    assert found.apart == [] and found.differences == [] and found.median_ratio == 1 and found.rows_saved == 0
    assert "the same recipe, layout, tokenizer and inputs" in shown(found)


def test_the_commands_it_ends_with_work(sequential: Dataset, wait_k: Dataset) -> None:
    ran = pipeline("compare", sequential.place.path(), wait_k.place.path(), columns=80)
    assert ran.code == 0, ran.output
    commands = [line.split() for line in ran.output.splitlines() if line.startswith("pipeline show")]
    most = compare(sequential, wait_k).apart[0]
    assert [command[-1] for command in commands] == [most.a.id, most.b.id]
    for command, rows in zip(commands, (most.a.rows, most.b.rows), strict=True):
        again = pipeline(*command[1:], "--no-pager")
        assert again.code == 0 and f"{rows} rows" in again.output


def test_figures_are_json(sequential: Dataset, wait_k: Dataset) -> None:
    ran = pipeline("compare", sequential.place.path(), wait_k.place.path(), "--json")
    assert ran.code == 0
    assert msgspec.json.decode(ran.output, type=Comparison) == compare(sequential, wait_k)


@settings(max_examples=10)
@given(SOME, SOME)
def test_it_fits_80_columns(a: list[Drawn], b: list[Drawn]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = compare(write(Path(folder, "a"), RECIPE, [a]), write(Path(folder, "b"), RECIPE, [b]))
    lines = [line for line in shown(found).splitlines() if not line.startswith("pipeline show")]
    assert max(map(len, lines)) <= 80


def test_figures_of_a_large_corpus_fit_too(sequential: Dataset, wait_k: Dataset) -> None:
    """Billions of rows, a long path, and an id of 100 characters."""
    found = compare(sequential, wait_k)
    large: dict[str, Any] = {"rows": 10**11, "tokens": 3 * 10**11, "only_here": 10**8, "place": "/data/" + "x" * 90}
    most = msgspec.structs.replace(found.apart[0].a, id="y" * 100 + ".jsonl:123456789", rows=10**6)
    found = msgspec.structs.replace(
        found,
        a=msgspec.structs.replace(found.a, **large),
        b=msgspec.structs.replace(found.b, **large | {"rows": 10**10}),
        apart=[msgspec.structs.replace(found.apart[0], a=most)],
    )
    lines = [line for line in shown(found).splitlines() if not line.startswith("pipeline show")]
    assert max(map(len, lines)) <= 80
    assert re.search("100,000,000,000 +10,000,000,000 +-90.0%", "".join(lines))


def test_nothing_in_a_name_acts_on_the_terminal(sequential: Dataset, wait_k: Dataset) -> None:
    found = compare(sequential, wait_k)
    evil = msgspec.structs.replace(found.a, place="\x1b[2Jgrids", recipe="[bold]\x1b]0;x\x07")
    grids = msgspec.structs.replace(found.apart[0].a, id="\x1b[2J:1")
    found = msgspec.structs.replace(
        found, a=evil, differences=["inputs: \x1b[2J"], apart=[msgspec.structs.replace(found.apart[0], a=grids)]
    )
    assert "\x1b" not in shown(found) and "\x07" not in shown(found) and "[bold]" in shown(found)


def test_a_conversation_without_rows(tmp_path: Path) -> None:
    """Only empty texts: no ratio, no answer, and nothing fails."""
    empty = [Drawn(["user", "answer"], [])]
    said = [Drawn(["user", "answer"], [Piece(NUMBER["user"], 0, 0, [5, 6]), Piece(NUMBER["output"], 4, 1, [6])])]
    a, b = write(tmp_path / "a", RECIPE, [empty]), write(tmp_path / "b", RECIPE, [said])
    found = compare(a, b)
    check(found, a, b)
    assert found.median_ratio is None and found.answer is None and found.a.delay is None
    assert shown(found) and shown(compare(a, a))
