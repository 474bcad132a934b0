"""Planners that ask a language model.

A teacher is a module with ``Options`` (a msgspec Struct of its recipe options), ``PROMPT`` (the shipped prompt that it uses
by default) and ``Planner(layout, options, prompt)``, a :class:`~pipeline.teach.protocol.TeachingPlanner`: an async callable
from parts and an :class:`~pipeline.teach.protocol.Ask` to segments, which knows how long its longest answer may be. Its
constructor raises :class:`~pipeline.errors.UserError` where the layout lacks what it needs. To add one: write the module, name
it here, describe its options in ``schemas/recipe.schema.json``.
"""

from __future__ import annotations

from types import ModuleType

from pipeline.teach.planners import align, audit, blind, table

TEACHERS: dict[str, ModuleType] = {"align": align, "blind": blind, "audit": audit, "table": table}
