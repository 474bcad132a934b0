"""Validation passes what the pipeline makes, and finds every kind of damage, under its own code."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from rich.console import Console
from samples import builtin, chat, make_dataset, message, raw

from pipeline import open_dataset
from pipeline.errors import UserError
from pipeline.resources import shipped
from pipeline.store import identity, manifest
from pipeline.store.validate import MEANING, Code, Report, render, validate

CALLS = [{"type": "function", "id": i, "function": {"name": i, "arguments": {"n": 1}}} for i in "ab"]
RECORDS = [
    chat("What is it? Tell me.", "It is 日本語. Really! Yes.", topic="languages"),
    chat("One.", "Two."),
    {
        "messages": [
            message("system", "Be brief. Be kind."),
            message("user", "Book it."),
            {"role": "assistant", "content": "", "reasoning_content": "Two calls.", "tool_calls": CALLS},
            message("tool", "done b", tool_call_id="b"),
            message("tool", "done a", tool_call_id="a"),
            message("assistant", "Both are done."),
        ]
    },
    {"messages": [message("narrator", "Once upon a time")]},
    chat(*["Why is that so? I wonder.", "Because. That is why, my friend."] * 8),
    chat("Is this the last one?", "It is. Good bye.", "Bye!", "Bye bye."),
]
SETTINGS = ["layout=agent", "shard.records=4", "rows.max=60", "rows.long=window"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validate")
    (folder / "chats.jsonl").write_bytes(b"\n".join(map(raw, RECORDS)))
    make_dataset(folder / "chats.jsonl", folder / "dataset", "wait-k", SETTINGS)
    return folder


class Damage:
    """A copy of a good dataset, and ways to damage it so that nothing but the damage shows: hashes are put right."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs: dict[str, str] | None = None

    def manifest(self, change: Callable[[dict[str, Any]], None], fingerprint: bool = True) -> None:
        document = json.loads((self.folder / "dataset.json").read_text())
        change(document)
        if fingerprint:
            made = msgspec.convert(document, manifest.Manifest)
            document["fingerprint"] = identity.fingerprint(identity.identity_of(made))
        (self.folder / "dataset.json").write_text(json.dumps(document))

    def shard(self, number: int, change: Callable[[dict[str, Any]], None]) -> None:
        self.manifest(lambda document: change(document["shards"][number]))

    def counts(self, number: int, **amounts: Any) -> None:
        """Change the counts of a shard and of the whole alike."""

        def change(document: dict[str, Any]) -> None:
            for name, amount in amounts.items():
                shard = document["shards"][number]["counts"]
                if isinstance(amount, int):
                    document["counts"][name] += amount - shard[name]
                else:
                    document["counts"][name] = amount
                shard[name] = amount
            document["quarantine_reasons"] = document["counts"]["quarantine_reasons"]

        self.manifest(change)

    def put(self, path: str, data: bytes) -> None:
        """Replace a file and put its size and hash right."""
        (self.folder / path).write_bytes(data)

        def change(document: dict[str, Any]) -> None:
            for shard in document["shards"]:
                for entry in (shard, shard["plans"], shard["quarantine"]):
                    if entry is not None and entry["path"] == path:
                        entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

        self.manifest(change)

    def table(self, change: Callable[[pa.Table], pa.Table], shard: int = 0) -> None:
        path = f"data/part-{shard:05d}.parquet"
        sink = io.BytesIO()
        pq.write_table(change(pq.read_table(self.folder / path)), sink)
        self.put(path, sink.getvalue())

    def rows(self, change: Callable[[list[dict[str, Any]]], None], shard: int = 0) -> None:
        def rewritten(table: pa.Table) -> pa.Table:
            rows = table.to_pylist()
            change(rows)
            return pa.Table.from_pylist(rows, table.schema)

        self.table(rewritten, shard)

    def row(self, change: Callable[[dict[str, Any]], None], row: int = 0, shard: int = 0) -> None:
        self.rows(lambda rows: change(rows[row]), shard)

    def span(self, change: Callable[[dict[str, Any]], None], span: int = -1, row: int = 0, shard: int = 0) -> None:
        """Change a span and put num_rows and num_tokens right."""

        def changed(grid: dict[str, Any]) -> None:
            change(grid["spans"][span])
            grid["num_rows"] = max(s["start"] + len(s["tokens"]) for s in grid["spans"])
            grid["num_tokens"] = sum(len(s["tokens"]) for s in grid["spans"])

        self.row(changed, row, shard)

    def plans(self, change: Callable[[list[dict[str, Any]]], None], shard: int = 0) -> None:
        path = f"plans/part-{shard:05d}.jsonl.zst"
        data = zstandard.ZstdDecompressor().decompressobj().decompress((self.folder / path).read_bytes())
        lines = [json.loads(line) for line in data.splitlines()]
        change(lines)
        self.put(path, zstandard.compress(b"".join(raw(line) + b"\n" for line in lines)))

    def segment(self, segment: int, **changes: Any) -> None:
        self.plans(lambda lines: lines[0]["segments"][segment].update(changes))

    def quarantine(self, **changes: Any) -> None:
        path = "quarantine/part-00000.jsonl"
        line = json.loads((self.folder / path).read_bytes())
        self.put(path, raw({**line, **changes}) + b"\n")

    def file(self, path: str, change: Callable[[bytes], bytes]) -> None:
        """Change a file and nothing else."""
        (self.folder / path).write_bytes(change((self.folder / path).read_bytes()))

    def rename_plans(self, path: str) -> None:
        (self.folder / "plans/part-00000.jsonl.zst").rename(self.folder / path)
        self.shard(0, lambda shard: shard["plans"].update(path=path))

    def input(self, change: Callable[[bytes], bytes]) -> None:
        source = self.folder.parent / "chats.jsonl"
        copy = self.folder.parent / f"{self.folder.name}-chats.jsonl"
        copy.write_bytes(change(source.read_bytes()))
        self.inputs = {"chats.jsonl": str(copy)}


@pytest.fixture
def damage(good: Path, tmp_path: Path) -> Damage:
    shutil.copytree(good / "dataset", tmp_path / "dataset")
    shutil.copy(good / "chats.jsonl", tmp_path / "chats.jsonl")
    return Damage(tmp_path / "dataset")


VOCAB = builtin().vocab_size  # the silence id; the end id is the next
CONTROL = min(builtin().control_ids)
HALF_A_CHARACTER = builtin().vocabulary["Ã"]  # the byte C3


def token_of(text: str) -> int:
    (token,) = builtin().encode([text])[0].tolist()
    return int(token)


def first_token(token: int) -> Callable[[dict[str, Any]], None]:
    def change(span: dict[str, Any]) -> None:
        span["tokens"][0] = token

    return change


def other_token(same_length: bool) -> Callable[[dict[str, Any]], None]:
    """Another ordinary token, with as many characters as the first one or not."""

    def change(span: dict[str, Any]) -> None:
        size = len(builtin().decode(np.array(span["tokens"][:1], np.int32)))
        wanted = size if same_length else size + 1
        span["tokens"][0] = token_of({1: "x", 2: "it", 3: "the", 4: "that", 5: "which", 6: " which"}[wanted])

    return change


def swap(spans: list[dict[str, Any]]) -> None:
    spans[0], spans[1] = spans[1], spans[0]


def hidden_thought(damage: Damage) -> None:
    """A teacher's thought after the user's first sentence, in a layout that lets thoughts read nothing of the user."""
    teacher = {"planner": "blind", "prompt": "0" * 64, "model": "m", "revision": None, "temperature": 0.7, "top_p": 1.0,
               "seed": 0, "answers": []}  # fmt: skip
    thought = {"stream": "think", "part": -1, "begin": 0, "end": 0, "text": "Hm.", "after": [[0, None]]}
    damage.plans(lambda lines: (lines[0]["segments"].append(thought), lines[0].update(teacher=teacher)))
    visibility = {name: [] for name in ("user", "think", "call", "output")}
    damage.manifest(lambda document: document["layout"].update(visibility=visibility, relay="allowed"))


def rows_max(document: dict[str, Any], most: int) -> None:
    document["recipe"]["rows"]["max"] = most


CASES: list[tuple[Code, str, Callable[[Damage], Any]]] = [
    (
        Code.MANIFEST,
        "an unknown key",
        lambda d: d.file("dataset.json", lambda b: b.replace(b'"counts"', b'"count"', 1)),
    ),
    (Code.MANIFEST, "not JSON", lambda d: d.file("dataset.json", lambda b: b[:-9])),
    (Code.MANIFEST, "a shard under another name", lambda d: d.rename_plans("plans/x")),
    (Code.MANIFEST, "another layout's name", lambda d: d.manifest(lambda m: m["recipe"].update(layout="chat-2"))),
    (Code.LAYOUT, "an unknown kind", lambda d: d.manifest(lambda m: m["layout"]["streams"][0].update(kind="speaker"))),
    (Code.LAYOUT, "not expanded", lambda d: d.manifest(lambda m: m["layout"]["streams"][0].pop("loss"))),
    (Code.RECIPE, "an unknown option", lambda d: d.manifest(lambda m: m["recipe"]["options"].update(q=1))),
    (Code.RECIPE, "a default that is missing", lambda d: d.manifest(lambda m: m["recipe"]["options"].pop("unit"))),
    (Code.FINGERPRINT, "another one", lambda d: d.manifest(lambda m: m.update(fingerprint="0" * 64), False)),
    (Code.FINGERPRINT, "another recipe", lambda d: d.manifest(lambda m: m["recipe"].update(name="x"), False)),
    (Code.TOKENIZER, "other bytes", lambda d: d.file("tokenizer.json", lambda b: b + b" ")),
    (Code.TOKENIZER, "not readable", lambda d: d.file("tokenizer.json", lambda b: b[:100])),
    (Code.TOKENIZER, "another size", lambda d: d.manifest(lambda m: m["tokenizer"].update(vocab_size=1))),
    (Code.TOKENIZER, "another silence", lambda d: d.manifest(lambda m: m["tokenizer"].update(silence_id=5))),
    (Code.MISSING_FILE, "grids", lambda d: (d.folder / "data/part-00001.parquet").unlink()),
    (Code.MISSING_FILE, "plans", lambda d: (d.folder / "plans/part-00001.jsonl.zst").unlink()),
    (Code.MISSING_FILE, "quarantine", lambda d: (d.folder / "quarantine/part-00000.jsonl").unlink()),
    (Code.MISSING_FILE, "tokenizer", lambda d: (d.folder / "tokenizer.json").unlink()),
    (Code.FILE_BYTES, "one more", lambda d: d.file("quarantine/part-00000.jsonl", lambda b: b + b"\n")),
    (
        Code.FILE_HASH,
        "a flipped byte",
        lambda d: d.file("data/part-00000.parquet", lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:]),
    ),
    (
        Code.FILE_HASH,
        "a flipped byte of a plan",
        lambda d: d.file("plans/part-00000.jsonl.zst", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
    ),
    (Code.STRAY_FILE, "a shard too many", lambda d: (d.folder / "data/part-00009.parquet").write_bytes(b"")),
    (Code.SHARD_RANGE, "a gap", lambda d: d.shard(1, lambda s: s["source"].update(first=5))),
    (Code.SHARD_RANGE, "an unknown input", lambda d: d.shard(1, lambda s: s["source"].update(file="x"))),
    (Code.COUNTS, "swapped", lambda d: d.counts(0, converted=1, quarantined=3)),
    (Code.COUNTS, "of a shard", lambda d: d.shard(0, lambda s: s["counts"].update(tokens=1))),
    (Code.COUNTS, "rows", lambda d: d.counts(0, rows=9)),
    (Code.COUNTS, "shard rows", lambda d: d.shard(0, lambda s: s.update(rows=9))),
    (Code.COUNTS, "of the whole", lambda d: d.manifest(lambda m: m["counts"].update(read=7))),
    (Code.COUNTS, "of an input", lambda d: d.manifest(lambda m: m["inputs"][0].update(records=7))),
    (Code.COUNTS, "truncated", lambda d: d.counts(0, truncated=1)),
    (Code.COUNTS, "silence", lambda d: d.counts(0, silence_in_content=1)),
    (Code.COUNTS, "reasons", lambda d: d.counts(0, quarantine_reasons={"too_long": 1})),
    (Code.COUNTS, "dropped", lambda d: d.counts(0, dropped_parts={"think": 1})),
    (Code.UNREADABLE, "no Parquet", lambda d: d.put("data/part-00000.parquet", b"PAR1 no PAR1")),
    (Code.UNREADABLE, "no zstd", lambda d: d.put("plans/part-00000.jsonl.zst", b"plain")),
    (
        Code.UNREADABLE,
        "half a zstd",
        lambda d: d.put("plans/part-00000.jsonl.zst", zstandard.compress(b"{}\n" * 999)[:-9]),
    ),
    (Code.SCHEMA, "a column too few", lambda d: d.table(lambda t: t.drop_columns(["meta"]))),
    (
        Code.SCHEMA,
        "another type",
        lambda d: d.table(lambda t: t.set_column(1, "num_rows", t["num_rows"].cast(pa.int64()))),
    ),
    (Code.SCHEMA, "no metadata", lambda d: d.table(lambda t: t.replace_schema_metadata({}))),
    (
        Code.SCHEMA,
        "another tokenizer's",
        lambda d: d.table(
            lambda t: t.replace_schema_metadata({**t.schema.metadata, b"pipeline.tokenizer_sha256": b"0"})
        ),
    ),
    (Code.ID, "another", lambda d: d.row(lambda r: r.update(id="chats.jsonl:9"))),
    (Code.ID, "no window", lambda d: d.row(lambda r: r.update(id="chats.jsonl:4"), shard=1)),
    (Code.DUPLICATE_ID, "twice", lambda d: d.rows(lambda r: r[1].update(id=r[0]["id"]))),
    (Code.SOURCE, "another file", lambda d: d.row(lambda r: r["source"].update(file="x.jsonl"))),
    (Code.SOURCE, "another shard's record", lambda d: d.row(lambda r: r["source"].update(record=5))),
    (Code.SOURCE, "out of order", lambda d: d.rows(lambda r: r.reverse())),
    (Code.PARTS, "an unknown role", lambda d: d.row(lambda r: r["parts"][0].update(role="nobody"))),
    (Code.PARTS, "messages out of order", lambda d: d.row(lambda r: r["parts"][0].update(message=9))),
    (Code.PARTS, "a reply to no call", lambda d: d.row(lambda r: r["parts"][-2].update(reply_to=0), 2)),
    (Code.META, "a list", lambda d: d.row(lambda r: r.update(meta="[]"))),
    (Code.META, "not JSON", lambda d: d.row(lambda r: r.update(meta="x"))),
    (Code.NUM_ROWS, "one more", lambda d: d.row(lambda r: r.update(num_rows=r["num_rows"] + 1))),
    (Code.NUM_TOKENS, "one more", lambda d: d.row(lambda r: r.update(num_tokens=r["num_tokens"] + 1))),
    (Code.TOO_MANY_ROWS, "a lower limit", lambda d: d.manifest(lambda m: rows_max(m, 5))),
    (Code.SPAN_EMPTY, "no tokens", lambda d: d.span(lambda s: s.update(tokens=[]))),
    (Code.SPAN_ORDER, "swapped", lambda d: d.row(lambda r: swap(r["spans"]))),
    (Code.SPAN_ORDER, "before row 0", lambda d: d.span(lambda s: s.update(start=-1), 0)),
    (Code.SPAN_OVERLAP, "one row too early", lambda d: d.span(lambda s: s.update(start=s["start"] - 1), 1)),
    (Code.SPAN_STREAM, "99", lambda d: d.span(lambda s: s.update(stream=99))),
    (Code.SPAN_PART, "99", lambda d: d.span(lambda s: s.update(part=99))),
    (Code.SPAN_PART, "-2", lambda d: d.span(lambda s: s.update(part=-2))),
    (Code.SPAN_ROLE, "user text in a tool's lane", lambda d: d.span(lambda s: s.update(stream=2), 1)),
    (Code.TOKEN_ID, "too large", lambda d: d.span(first_token(VOCAB + 7))),
    (Code.TOKEN_ID, "negative", lambda d: d.span(first_token(-1))),
    (Code.CONTROL_TOKEN, "in content", lambda d: d.span(first_token(CONTROL))),
    (Code.END_MARKER, "in content", lambda d: d.span(first_token(VOCAB + 1))),
    (Code.END_MARKER, "missing", lambda d: d.span(lambda s: s["tokens"].pop())),
    (Code.END_MARKER, "of what the user says", lambda d: d.span(lambda s: s["tokens"].append(VOCAB + 1), 1)),
    (Code.SILENCE, "stored", lambda d: d.span(first_token(VOCAB))),
    (Code.UTF8, "half a character", lambda d: d.span(first_token(HALF_A_CHARACTER))),
    (Code.PLAN_LINE, "an unknown key", lambda d: d.plans(lambda lines: lines[0].update(x=1))),
    (Code.PLAN_LINE, "a row that no column holds", lambda d: d.segment(1, earliest=10**30)),
    (Code.PLAN_LINE, "not JSON", lambda d: d.put("plans/part-00000.jsonl.zst", zstandard.compress(b"{\n"))),
    (Code.PLAN_RECORDS, "one too few", lambda d: d.plans(lambda lines: lines.pop())),
    (Code.PLAN_RECORDS, "one twice", lambda d: d.plans(lambda lines: lines.append(lines[0]))),
    (Code.PLAN_RECORDS, "one too many", lambda d: d.plans(lambda lines: lines.append({"id": "x", "segments": []}))),
    (Code.PLAN_RECORDS, "out of order", lambda d: d.plans(lambda lines: lines.reverse())),
    (Code.PLAN_ORDER, "later", lambda d: d.segment(0, after=[[1, None]])),
    (Code.PLAN_ORDER, "unknown", lambda d: d.segment(0, after=[[99, None]])),
    (Code.PLAN_CUT, "a gap", lambda d: d.segment(1, begin=13)),
    (Code.PLAN_CUT, "another stream", lambda d: d.segment(1, stream="system")),
    (Code.PLAN_CUT, "an unknown stream", lambda d: d.segment(1, stream="x")),
    (Code.PLAN_CUT, "an unknown part", lambda d: d.segment(1, part=7)),
    (Code.PLAN_CUT, "a part without segments", lambda d: d.plans(lambda lines: lines[1]["segments"].pop())),
    (Code.PLAN_SPANS, "a span too few", lambda d: d.row(lambda r: r["spans"].pop(1))),
    (Code.PLAN_SPANS, "a span of another part", lambda d: d.span(lambda s: s.update(part=1), 0)),
    (Code.PLAN_TEXT, "another length", lambda d: d.span(other_token(False))),
    (Code.PLAN_EVIDENCE, "a thought of what is hidden from thoughts", lambda d: hidden_thought(d)),
    (Code.WINDOWS, "a higher limit", lambda d: d.manifest(lambda m: rows_max(m, 90))),
    (Code.WINDOWS, "no limit", lambda d: d.manifest(lambda m: rows_max(m, 9999))),
    (Code.AFTER, "a lag", lambda d: d.segment(2, lag=3)),
    (Code.AFTER, "a row", lambda d: d.segment(0, earliest=1)),
    (Code.AFTER, "another dependency", lambda d: d.segment(2, after=[[1, None]])),
    (Code.AFTER, "a row too early", lambda d: d.span(lambda s: s.update(start=s["start"] - 1), 2)),
    (Code.SCHEDULE, "a row too late", lambda d: d.span(lambda s: s.update(start=s["start"] + 1))),
    (Code.SCHEDULE, "a row too early", lambda d: d.span(lambda s: s.update(start=s["start"] - 1), 2)),
    (Code.SCHEDULE, "of a window", lambda d: d.span(lambda s: s.update(start=s["start"] + 1), row=1, shard=1)),
    (Code.SCHEDULE, "a dependency that is gone", lambda d: d.segment(2, after=[])),
    (Code.QUARANTINE_LINE, "an unknown reason", lambda d: d.quarantine(reason="mood")),
    (Code.QUARANTINE_LINE, "another id", lambda d: d.quarantine(id="chats.jsonl:2")),
    (Code.QUARANTINE_LINE, "another raw record", lambda d: d.quarantine(raw="{}")),
    (Code.QUARANTINE_LINE, "not JSON", lambda d: d.put("quarantine/part-00000.jsonl", b"{\n")),
    (Code.OUTCOME, "another reason", lambda d: d.quarantine(reason="no_output")),
    (
        Code.OUTCOME,
        "lost",
        lambda d: (
            d.plans(lambda lines: lines.pop(1)),
            d.rows(lambda r: r.pop(1)),
            d.counts(0, converted=2, filtered=1),
        ),
    ),
    (Code.INPUT_MISSING, "gone", lambda d: setattr(d, "inputs", {"chats.jsonl": "/nowhere/chats.jsonl"})),
    (Code.INPUT_MISSING, "no run.json", lambda d: (d.folder / "run.json").unlink()),
    (Code.INPUT_CHANGED, "one record more", lambda d: d.input(lambda b: b + b"\n{}")),
    (Code.SOURCE_RECORD, "another hash", lambda d: d.row(lambda r: r["source"].update(sha256=b"0" * 32))),
    (Code.SOURCE_PARTS, "another message", lambda d: d.row(lambda r: r["parts"][-1].update(message=7))),
    (Code.SOURCE_TEXT, "an edited token", lambda d: d.span(other_token(True))),
    (Code.SOURCE_META, "another meta", lambda d: d.row(lambda r: r.update(meta='{"topic":"x"}'))),
]

#: Damage to a file as a whole, which may also show in what is in it.
WHOLE_FILES = {Code.FILE_BYTES, Code.FILE_HASH, Code.MISSING_FILE}


@pytest.mark.parametrize(("code", "what", "harm"), CASES, ids=[f"{code}: {what}" for code, what, _ in CASES])
def test_damage_is_found_under_its_own_code(
    code: Code, what: str, harm: Callable[[Damage], Any], damage: Damage
) -> None:
    harm(damage)
    report = validate(str(damage.folder), strict=True, inputs=damage.inputs)
    found = {problem.code: problem for problem in report.problems}
    assert not report.ok
    assert code in found
    assert found[code].count >= len(found[code].places) >= 1
    assert all(place.file for place in found[code].places)
    if code not in WHOLE_FILES:
        assert not WHOLE_FILES & found.keys()  # it is the check for this damage that found it
    assert json.loads(msgspec.json.encode(report))["ok"] is False


def test_every_code_has_a_meaning_and_a_damage_that_it_finds() -> None:
    assert set(MEANING) == set(Code)
    assert {code for code, _, _ in CASES} == set(Code)


def test_what_the_pipeline_makes_is_valid(good: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = validate(str(good / "dataset"), strict=True, progress=lambda done, every: seen.append((done, every)))
    assert report.problems == []
    assert report.ok
    assert seen == [(1, 2), (2, 2)]
    checked = report.checked
    assert (checked.shards, checked.quarantined, checked.compared) == (2, 1, 5)
    assert checked.grids > 5  # there are windows
    assert min(checked.spans, checked.tokens, checked.segments, checked.dependencies) > 0


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("agent", []),
        ("sequential", []),
        ("agent", ["lanes=1", "rows.max=60", "rows.long=window"]),
        ("agent", ["rows.max=40", "rows.long=truncate"]),
        ("agent", ["rows.max=20"]),
        ("wait-k", ["unit=token", "k=2"]),
        ("wait-k", ["k=0", "filter.max_turns=1"]),
        ("wait-k", ["layout=chat-2", "shard.records=1"]),
        ("wait-k", ["layout=cognition-10"]),
        ("wait-k", ["layout=solve-audit-3", "read.limit=2"]),
    ],
)
def test_every_kind_of_dataset_is_valid(recipe: str, settings: list[str], good: Path, tmp_path: Path) -> None:
    make_dataset(good / "chats.jsonl", tmp_path / "out", recipe, settings)
    report = validate(str(tmp_path / "out"), strict=True)
    assert report.problems == []


def test_every_input_form_is_compared_with_its_source(tmp_path: Path) -> None:
    lines = b"\n".join(map(raw, RECORDS))
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "a.jsonl").write_bytes(lines)
    (inputs / "b.jsonl.zst").write_bytes(zstandard.compress(lines))
    (inputs / "c.json").write_bytes(b"[" + b",".join(map(raw, RECORDS)) + b"]")
    (inputs / "d.jsonl").write_bytes(b"")
    pq.write_table(pa.Table.from_pylist([RECORDS[0], RECORDS[1]]), inputs / "e.parquet")
    make_dataset(inputs, tmp_path / "out", "agent", ["shard.records=4"])
    report = validate(str(tmp_path / "out"), strict=True)
    assert report.problems == []
    assert report.checked.compared == 3 * 5 + 2


def test_an_input_that_is_gone_and_a_stray_file_are_notes(damage: Damage) -> None:
    (damage.folder / "data" / "notes.txt").write_text("x")
    report = validate(str(damage.folder), inputs={"chats.jsonl": "/nowhere"})
    assert [(problem.code, problem.level) for problem in report.problems] == [
        (Code.STRAY_FILE, "note"),
        (Code.INPUT_MISSING, "note"),
    ]
    assert report.ok
    assert report.checked.compared == 0


def test_an_input_that_was_moved_is_compared_where_it_is_now(damage: Damage) -> None:
    (damage.folder / "run.json").unlink()
    damage.input(lambda data: data)
    report = validate(str(damage.folder), strict=True, inputs=damage.inputs)
    assert report.problems == []
    assert report.checked.compared == 5


def test_no_dataset_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset"):
        validate(str(tmp_path))


def rendered(report: Report) -> str:
    console = Console(file=io.StringIO(), width=200)
    render(report, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_report_says_what_is_wrong_where_and_how_often(damage: Damage) -> None:
    damage.rows(lambda rows: [row.update(num_rows=999) for row in rows])  # type: ignore[func-returns-value]
    text = rendered(validate(str(damage.folder)))
    assert "num_rows 3×" in text
    assert MEANING[Code.NUM_ROWS] in text
    assert "data/part-00000.parquet, chats.jsonl:0: expected" in text
    assert "found 999" in text
    assert "Not valid" in text


def test_the_report_says_what_was_checked(good: Path) -> None:
    text = rendered(validate(str(good / "dataset")))
    assert text.startswith("Valid: ")
    assert "compared with their source" in text
    assert "byte for byte" in text


@pytest.mark.parametrize(
    "keys",
    [{"end": "<|endoftext|>"}, {"silence": " the"}, {"silence": "<|endoftext|>"}],
    ids=["end", "word", "control"],
)
def test_ids_that_the_vocabulary_has_are_known_from_content(keys: dict[str, str], tmp_path: Path) -> None:
    """An end marker and a silence that are tokens of the vocabulary; content of that spelling is still text."""
    layout = yaml.safe_load(shipped("layouts")["chat-2"].read_text())
    (tmp_path / "layout.yaml").write_text(yaml.safe_dump({**layout, **keys}))
    (tmp_path / "chats.jsonl").write_bytes(raw(chat("Where is the <|endoftext|>?", "Here, on the left.")))
    made = make_dataset(tmp_path / "chats.jsonl", tmp_path / "out", "wait-k", [f"layout={tmp_path / 'layout.yaml'}"])
    assert made.counts.silence_in_content == (2 if keys == {"silence": " the"} else 0)
    report = validate(str(tmp_path / "out"), strict=True)
    assert report.problems == []
    ds = open_dataset(str(tmp_path / "out"))
    content = [ds.tokenizer.decode(span.tokens[span.tokens != ds.manifest.tokenizer.end_id]) for span in ds[0].spans]
    assert "".join(content) == "Where is the <|endoftext|>?Here, on the left."
