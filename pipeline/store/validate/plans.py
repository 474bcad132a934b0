"""The plans of one shard against its grids: one for each converted record, every span where it says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zstandard

from pipeline.plan.evidence import unread
from pipeline.plan.plan import Plan, replaces
from pipeline.store.plans import Fault, plans_or_faults, unpack
from pipeline.store.validate.report import Code
from pipeline.store.validate.rows import check_rows
from pipeline.store.validate.segments import (
    check_characters,
    check_cut,
    check_order,
    flatten,
    included_segments,
    spans_of,
)
from pipeline.store.validate.view import View


def check_plans(view: View, data: bytes) -> tuple[int, int]:
    """Check the plan file of a shard; how many plans it holds, and how many of them its grids truncate."""
    plans = _match(view, _read(view, data))
    segments = flatten(view, plans)
    sound = np.array([plan is not None for plan in plans], np.bool_)
    check_order(view, segments, sound)
    _check_evidence(view, plans, sound)
    included, truncated = included_segments(view, segments, sound)
    check_cut(view, segments, included, sound)
    span = spans_of(view, segments, included, sound)
    check_characters(view, segments, span)
    check_rows(view, plans, segments, included, truncated, span, sound)
    view.context.findings.checked(segments=len(segments.stream), dependencies=len(segments.of))
    return sum(plan is not None for plan in plans), int(truncated.sum())


def _check_evidence(view: View, plans: Sequence[Plan | None], sound: np.ndarray) -> None:
    """What a teacher has written waits for nothing that its stream may not read."""
    findings, layout, path = view.context.findings, view.context.layout, view.shard.plans.path
    for plan, can_be_read in zip(plans, sound, strict=True):
        if plan is None or plan.teacher is None or not can_be_read or replaces(plan.segments):
            continue
        if edge := unread(plan.segments, layout):
            reader, other = (f"segment {number}, in stream '{plan.segments[number].stream}'" for number in edge)
            findings.add(Code.PLAN_EVIDENCE, path, plan.id, reader, found=f"waits for {other}")


def _read(view: View, data: bytes) -> list[Plan]:
    """The lines that are plans."""
    findings, path = view.context.findings, view.shard.plans.path
    plans: list[Plan] = []
    try:
        lines = unpack(data)
    except zstandard.ZstdError as error:
        findings.add(Code.UNREADABLE, path, found=str(error))
        return plans
    for plan in plans_or_faults(lines):
        if isinstance(plan, Fault):
            findings.add(Code.PLAN_LINE, path, where=f"line {plan.line}", found=plan.message)
        else:
            plans.append(plan)
    return plans


def _match(view: View, plans: Sequence[Plan]) -> list[Plan | None]:
    """The plan of every converted record."""
    findings, path, ids = view.context.findings, view.shard.plans.path, view.record_ids
    if [plan.id for plan in plans] == ids:
        return list(plans)
    by_id: dict[str, Plan] = {}
    known = set(ids)
    for plan in plans:
        if plan.id in by_id:
            findings.add(Code.PLAN_RECORDS, path, plan.id, found="a second plan")
        elif plan.id not in known:
            findings.add(Code.PLAN_RECORDS, path, plan.id, found="a plan without a grid")
        by_id.setdefault(plan.id, plan)
    missing = [id for id in ids if id not in by_id]
    for id in missing:
        findings.add(Code.PLAN_RECORDS, path, id, found="a grid without a plan")
    if not missing and len(by_id) == len(plans) == len(ids):
        findings.add(Code.PLAN_RECORDS, path, expected="the order of the grids")
    return [by_id.get(id) for id in ids]
