"""What validation found: for every kind of problem a code, how often, and the first few places."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal

import msgspec
import numpy as np

#: Places that are kept for each code.
KEPT_PLACES = 5
_KEPT_TEXT = 200


class Code(StrEnum):
    """Everything that validation can find wrong."""

    # the directory
    MANIFEST = "manifest"
    LAYOUT = "layout"
    RECIPE = "recipe"
    FINGERPRINT = "fingerprint"
    TOKENIZER = "tokenizer"
    MISSING_FILE = "missing_file"
    FILE_BYTES = "file_bytes"
    FILE_HASH = "file_hash"
    STRAY_FILE = "stray_file"
    SHARD_RANGE = "shard_range"
    COUNTS = "counts"
    # one shard's Parquet file
    UNREADABLE = "unreadable"
    SCHEMA = "schema"
    ID = "id"
    DUPLICATE_ID = "duplicate_id"
    SOURCE = "source"
    PARTS = "parts"
    META = "meta"
    NUM_ROWS = "num_rows"
    NUM_TOKENS = "num_tokens"
    TOO_MANY_ROWS = "too_many_rows"
    SPAN_EMPTY = "span_empty"
    SPAN_ORDER = "span_order"
    SPAN_OVERLAP = "span_overlap"
    SPAN_STREAM = "span_stream"
    SPAN_PART = "span_part"
    SPAN_ROLE = "span_role"
    TOKEN_ID = "token_id"
    CONTROL_TOKEN = "control_token"
    END_MARKER = "end_marker"
    SILENCE = "silence"
    UTF8 = "utf8"
    # its plans
    PLAN_LINE = "plan_line"
    PLAN_RECORDS = "plan_records"
    PLAN_ORDER = "plan_order"
    PLAN_CUT = "plan_cut"
    PLAN_SPANS = "plan_spans"
    PLAN_TEXT = "plan_text"
    PLAN_EVIDENCE = "plan_evidence"
    WINDOWS = "windows"
    AFTER = "after"
    SCHEDULE = "schedule"
    # its quarantine
    QUARANTINE_LINE = "quarantine_line"
    OUTCOME = "outcome"
    # against the source
    INPUT_MISSING = "input_missing"
    INPUT_CHANGED = "input_changed"
    SOURCE_RECORD = "source_record"
    SOURCE_PARTS = "source_parts"
    SOURCE_TEXT = "source_text"
    SOURCE_META = "source_meta"


MEANING: dict[Code, str] = {
    Code.MANIFEST: "dataset.json breaks its schema or contradicts itself",
    Code.LAYOUT: "the manifest's layout is not a valid, expanded layout",
    Code.RECIPE: "the manifest's recipe is not a valid, expanded recipe",
    Code.FINGERPRINT: "the fingerprint is not that of this recipe, tokenizer and inputs",
    Code.TOKENIZER: "tokenizer.json is not the tokenizer that the manifest describes",
    Code.MISSING_FILE: "a file that the manifest lists is not there",
    Code.FILE_BYTES: "a file does not have the size that the manifest gives",
    Code.FILE_HASH: "a file does not have the sha256 that the manifest gives",
    Code.STRAY_FILE: "a file that the manifest does not list",
    Code.SHARD_RANGE: "the shards do not cover the records of the inputs one after another",
    Code.COUNTS: "counts that do not add up, or are not what the files hold",
    Code.UNREADABLE: "a file cannot be read",
    Code.SCHEMA: "a Parquet file's columns or metadata are not those of the format",
    Code.ID: "a grid's id is not its source's file:record or file:record#window",
    Code.DUPLICATE_ID: "an id is given twice",
    Code.SOURCE: "a grid's source is not one of its shard's records, or out of order",
    Code.PARTS: "a part has an unknown role, a message out of order, or answers what is no call before it",
    Code.META: "meta is not a JSON object",
    Code.NUM_ROWS: "num_rows is not the end of the last span",
    Code.NUM_TOKENS: "num_tokens is not the number of tokens in the spans",
    Code.TOO_MANY_ROWS: "a grid has more rows than the recipe's rows.max",
    Code.SPAN_EMPTY: "a span without tokens",
    Code.SPAN_ORDER: "spans that are not ordered by (stream, start), or start before row 0",
    Code.SPAN_OVERLAP: "two spans of a stream overlap",
    Code.SPAN_STREAM: "a span in a stream that the layout does not have, or that is a clock",
    Code.SPAN_PART: "a span of a part that its grid does not have",
    Code.SPAN_ROLE: "a span in a stream that its part's role does not go to, or one part in two streams",
    Code.TOKEN_ID: "a token id outside the vocabulary",
    Code.CONTROL_TOKEN: "a control token in content",
    Code.END_MARKER: "an end marker that is missing at the end of a message, or stands elsewhere",
    Code.SILENCE: "the silence token is stored",
    Code.UTF8: "a span that does not decode on its own to valid UTF-8",
    Code.PLAN_LINE: "a plan line that cannot be read or breaks its schema",
    Code.PLAN_RECORDS: "not exactly one plan for every converted record, in order",
    Code.PLAN_ORDER: "a plan in which a segment waits for one that does not come before it",
    Code.PLAN_CUT: "a plan that does not cut its parts without gaps, each in one stream of its role",
    Code.PLAN_SPANS: "a plan whose segments are not the stored spans",
    Code.PLAN_TEXT: "a segment and its span differ in characters",
    Code.PLAN_EVIDENCE: "a teacher's text waits for what its stream may not read",
    Code.WINDOWS: "the windows (or the truncation) are not those that the schedule gives",
    Code.AFTER: "a span starts before what its plan makes it wait for, horizon and lag included",
    Code.SCHEDULE: "a span does not start at the row that the earliest schedule of its plan gives",
    Code.QUARANTINE_LINE: "a quarantine line that breaks its schema or contradicts its shard",
    Code.OUTCOME: "a record that is not exactly one of converted, quarantined and filtered",
    Code.INPUT_MISSING: "an input cannot be read any more, so its texts were not compared",
    Code.INPUT_CHANGED: "an input is not the file that was converted, so its texts were not compared",
    Code.SOURCE_RECORD: "a raw record is not the one that was converted",
    Code.SOURCE_PARTS: "the parts of a grid are not those of its record",
    Code.SOURCE_TEXT: "a part's spans do not spell its text",
    Code.SOURCE_META: "meta is not what the record says",
}

#: What is only odd; an error where the check is strict.
NOTES = frozenset({Code.STRAY_FILE, Code.INPUT_MISSING})


class Found(msgspec.Struct, frozen=True, omit_defaults=True):
    """One place where something is wrong."""

    #: Relative to the dataset; for an input its name.
    file: str
    #: Id of the grid or record.
    id: str = ""
    #: Which span, segment, part, line or key.
    where: str = ""
    expected: str = ""
    found: str = ""


class Problem(msgspec.Struct, frozen=True):
    """One kind of problem."""

    code: Code
    level: Literal["error", "note"]
    meaning: str
    count: int
    #: The first few.
    places: list[Found]


class Checked(msgspec.Struct, frozen=True):
    """How much was checked."""

    shards: int = 0
    grids: int = 0
    spans: int = 0
    tokens: int = 0
    segments: int = 0
    dependencies: int = 0
    quarantined: int = 0
    #: Records whose texts were compared with their source.
    compared: int = 0


class Report(msgspec.Struct, frozen=True):
    """The result of validation. ``ok``: everything holds."""

    dataset: str
    ok: bool
    strict: bool
    problems: list[Problem]
    checked: Checked


class Findings:
    """Collects problems."""

    def __init__(self) -> None:
        self._count: dict[Code, int] = {}
        self._places: dict[Code, list[Found]] = {}
        self._checked: dict[str, int] = {}

    def add(
        self,
        code: Code,
        file: str,
        id: str = "",
        where: str = "",
        expected: Any = "",
        found: Any = "",
        count: int = 1,
    ) -> None:
        """Something is wrong at one place, ``count`` times."""
        self._count[code] = self._count.get(code, 0) + count
        places = self._places.setdefault(code, [])
        if len(places) < KEPT_PLACES:
            places.append(Found(file, id, where, _short(expected), _short(found)))

    def add_each(self, code: Code, wrong: np.ndarray, place: Callable[[int], Found]) -> None:
        """Something is wrong wherever ``wrong`` is true; ``place`` describes the i-th element."""
        numbers = np.flatnonzero(wrong)
        if not len(numbers):
            return
        self._count[code] = self._count.get(code, 0) + len(numbers)
        places = self._places.setdefault(code, [])
        for number in numbers[: KEPT_PLACES - len(places)].tolist():
            found = place(number)
            places.append(msgspec.structs.replace(found, expected=_short(found.expected), found=_short(found.found)))

    def checked(self, **amounts: int) -> None:
        """Say that so much was checked."""
        for name, amount in amounts.items():
            self._checked[name] = self._checked.get(name, 0) + amount

    def report(self, dataset: str, strict: bool) -> Report:
        """The report so far; codes in the order of :class:`Code`."""
        problems = [
            Problem(
                code,
                "note" if code in NOTES and not strict else "error",
                MEANING[code],
                self._count[code],
                self._places[code],
            )
            for code in Code
            if code in self._count
        ]
        ok = all(problem.level == "note" for problem in problems)
        return Report(dataset, ok, strict, problems, Checked(**self._checked))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _KEPT_TEXT else text[: _KEPT_TEXT - 1] + "…"
