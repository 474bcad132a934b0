"""The rejected records of one shard against their schema and their shard."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import msgspec

from pipeline import schema
from pipeline.store.manifest import Shard
from pipeline.store.validate.report import Code, Findings


def check_quarantine(shard: Shard, data: bytes, findings: Findings) -> dict[int, dict[str, Any]]:
    """The valid quarantine lines, by the record's number."""
    if shard.quarantine is None:
        return {}
    path = shard.quarantine.path
    valid = schema.validator("quarantine")
    lines: dict[int, dict[str, Any]] = {}
    rows = data.split(b"\n")
    if rows.pop():
        findings.add(Code.QUARANTINE_LINE, path, where=f"line {len(rows) + 1}", expected="a line break at the end")
    newest = -1
    for number, row in enumerate(rows, 1):
        where = f"line {number}"
        try:
            line = msgspec.json.decode(row)
        except msgspec.DecodeError as error:
            findings.add(Code.QUARANTINE_LINE, path, where=where, found=str(error))
            continue
        if not valid.is_valid(line):
            findings.add(Code.QUARANTINE_LINE, path, where=where, found="; ".join(schema.problems("quarantine", line)))
            continue
        source, raw = line["source"], line["raw"]
        record = source["record"]
        if line["id"] != f"{shard.source.file}:{record}" or source["file"] != shard.source.file:
            findings.add(
                Code.QUARANTINE_LINE,
                path,
                line["id"],
                where,
                expected=f"{shard.source.file}:{record}",
                found=line["id"],
            )
        if not newest < record < shard.source.first + shard.source.records or record < shard.source.first:
            findings.add(
                Code.QUARANTINE_LINE,
                path,
                line["id"],
                where,
                expected="a record of this shard, in order",
                found=record,
            )
        if raw is not None and hashlib.sha256(raw.encode()).hexdigest() != source["sha256"]:
            findings.add(
                Code.QUARANTINE_LINE,
                path,
                line["id"],
                where,
                expected="the sha256 of raw",
                found=source["sha256"],
            )
        newest = max(newest, record)
        lines[record] = line
    reasons = dict(sorted(Counter(line["reason"] for line in lines.values()).items()))
    if reasons != shard.counts.quarantine_reasons:
        findings.add(
            Code.COUNTS,
            path,
            where="quarantine_reasons",
            expected=reasons,
            found=shard.counts.quarantine_reasons,
        )
    findings.checked(quarantined=len(lines))
    return lines
