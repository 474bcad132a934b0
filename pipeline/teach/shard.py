"""The plans of one shard, made by a teacher: many conversations at once, each on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from pipeline.errors import Rejected
from pipeline.plan.plan import Plan, Plans
from pipeline.plan.route import route
from pipeline.read.containers import Record
from pipeline.read.parse import read_conversation
from pipeline.recipe import Recipe
from pipeline.teach.asking import Asker
from pipeline.teach.protocol import TeachingPlanner


class ShardTeacher:
    """Makes plans with one recipe and one engine. Built once per process; several shards may be planned at once."""

    def __init__(self, recipe: Recipe, planner: TeachingPlanner, asker: Asker, conversations: int) -> None:
        """``conversations``: how many are planned at once. More than the engine has requests in flight would only
        throw each other's prefixes out of its cache."""
        self._recipe = recipe
        self._planner = planner
        self._asker = asker
        self._room = asyncio.Semaphore(conversations)

    async def plan(
        self, file: str, format_name: str, records: Sequence[Record], planned: Callable[[], None] = lambda: None
    ) -> Plans:
        """A plan, or why there is none, for every record that is a conversation; ``planned`` is called for each record.

        Records that cannot be read, or that the recipe leaves out, are not asked about: conversion says what is wrong.
        """
        by_id: dict[str, Plan | Rejected] = {}

        async def plan(record: Record) -> None:
            async with self._room:
                made = await self._plan(f"{file}:{record.number}", format_name, record)
            if made is not None:
                by_id[f"{file}:{record.number}"] = made
            planned()

        async with asyncio.TaskGroup() as tasks:
            for record in records:
                tasks.create_task(plan(record))
        return Plans(self._recipe.layout, by_id)

    async def _plan(self, record_id: str, format_name: str, record: Record) -> Plan | Rejected | None:
        recipe = self._recipe
        if record.raw is None:
            return None
        try:
            conversation = read_conversation(record.raw, format_name, recipe.read.messages_field)
            parts, _ = route(conversation, recipe.layout, recipe.needs_output)
        except Rejected:
            return None
        if not recipe.filter.keeps(parts):
            return None
        assert recipe.prompt is not None
        ask = self._asker.conversation(recipe.prompt)
        try:
            segments = await self._planner(parts, ask)
        except Rejected as reason:
            return reason
        return Plan(record_id, segments, ask.provenance(recipe.planner))
