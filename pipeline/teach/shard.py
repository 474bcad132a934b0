"""The plans of one shard, made by a teacher: many conversations at once, each on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.engines.probe import Kind, probe
from pipeline.engines.protocol import Engine, Model
from pipeline.errors import Rejected
from pipeline.plan.plan import Plan, Plans, Provenance
from pipeline.plan.route import route
from pipeline.read.containers import Record
from pipeline.read.conversation import Part
from pipeline.read.parse import read_conversation
from pipeline.recipe import Recipe, find_planner
from pipeline.teach.asking import Probe
from pipeline.teach.protocol import Ask, TeachingPlanner

#: Fewer than most tokenizers have in English: what is reckoned with it is no more than what is needed.
_CHARACTERS_PER_TOKEN = 5


class Witness(Ask, Protocol):
    """An :class:`Ask` that knows what a plan came from."""

    def provenance(self, planner: str) -> Provenance:
        """The answers that were used, and how they were asked for."""
        ...


class ShardTeacher:
    """Makes plans with one recipe. Built once per process; several shards may be planned at once."""

    def __init__(self, recipe: Recipe, ask_for: Callable[[str], Witness], conversations: int) -> None:
        """``ask_for`` gives what asks on behalf of a record, by its id. ``conversations``: how many are planned at once.
        More than the engine has requests in flight would only throw each other's prefixes out of its cache.

        Raises :class:`pipeline.errors.UserError` where the layout lacks what the planner needs.
        """
        self._recipe = recipe
        self._planner = teaching_planner(recipe)
        self._ask_for = ask_for
        self._room = asyncio.Semaphore(conversations)

    async def plan(
        self, file: str, format_name: str, records: Sequence[Record], planned: Callable[[], None] = lambda: None
    ) -> Plans:
        """A plan, or why there is none, for every record that is a conversation; ``planned`` is called for each record.

        Records that cannot be read, or that the recipe leaves out, are not asked about: conversion says what is wrong.
        Raises :class:`pipeline.errors.UserError` where the engine or the answer store fails for good.
        """
        by_id: dict[str, Plan | Rejected] = {}

        async def plan(record: Record) -> None:
            record_id = f"{file}:{record.number}"
            async with self._room:
                made = await self._plan(record_id, format_name, record)
            if made is not None:
                by_id[record_id] = made
            planned()

        try:
            async with asyncio.TaskGroup() as tasks:
                for record in records:
                    tasks.create_task(plan(record))
        except ExceptionGroup as group:
            raise _first(group) from None
        return Plans(self._recipe.layout, by_id)

    async def _plan(self, record_id: str, format_name: str, record: Record) -> Plan | Rejected | None:
        parts = parts_to_plan(self._recipe, format_name, record)
        if parts is None:
            return None
        ask = self._ask_for(record_id)
        try:
            segments = await self._planner(parts, ask)
        except Rejected as reason:
            return reason
        return Plan(record_id, segments, ask.provenance(self._recipe.planner))


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """What went wrong first: of all conversations, the others were only stopped for it."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first


def teaching_planner(recipe: Recipe) -> TeachingPlanner:
    """The planner of a recipe that asks a model. Raises :class:`pipeline.errors.UserError` where the layout does not fit."""
    module = find_planner(recipe.planner)
    planner: TeachingPlanner = module.Planner(recipe.layout, module.Options(**recipe.options), recipe.prompt)
    return planner


def probe_for(recipe: Recipe) -> Probe:
    """What a recipe needs of an engine: constraints that bind, and room for the prompt's own text and the longest answer."""
    module = find_planner(recipe.planner)
    assert recipe.prompt is not None and recipe.teacher is not None
    prompt = sum(map(len, recipe.prompt.templates.values())) // _CHARACTERS_PER_TOKEN
    tokens = prompt + teaching_planner(recipe).longest
    template = recipe.teacher.template

    async def look(engine: Engine, model: Model) -> frozenset[str]:
        needs: tuple[Kind, ...] = getattr(module, "NEEDS", ("json",))
        wishes: tuple[Kind, ...] = getattr(module, "WISHES", ())
        return await probe(engine, model, required=needs, wished=wishes, tokens=tokens, template=template)

    return look


def parts_to_plan(recipe: Recipe, format_name: str, record: Record) -> list[Part] | None:
    """The parts of a record that a plan is to be made for; None where it will not be converted."""
    if record.raw is None:
        return None
    try:
        conversation = read_conversation(record.raw, format_name, recipe.read.messages_field)
        parts, _ = route(conversation, recipe.layout, recipe.needs_output)
    except Rejected:
        return None
    return parts if recipe.filter.keeps(parts) else None
