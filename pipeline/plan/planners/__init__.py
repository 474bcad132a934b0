"""Planners: what turns the parts of a conversation into a plan.

A planner is a module with ``Options`` (a msgspec Struct of its recipe options) and ``Planner(layout, options)``, a
callable from parts to segments. To add one: write the module, name it here, describe its options in
``schemas/recipe.schema.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import msgspec

from pipeline.layout import Layout
from pipeline.plan.plan import Segment
from pipeline.plan.planners import agent, sequential, wait_k
from pipeline.read.conversation import Part

#: Parts of one conversation (only those that have a stream) to the segments of its plan.
Planner = Callable[[Sequence[Part]], list[Segment]]

PLANNERS: dict[str, ModuleType] = {"sequential": sequential, "wait-k": wait_k, "agent": agent}


def build_planner(name: str, options: Mapping[str, Any], layout: Layout) -> Planner:
    """The planner of that name, set up for a layout."""
    module = PLANNERS[name]
    planner: Planner = module.Planner(layout, msgspec.convert(dict(options), module.Options))
    return planner
