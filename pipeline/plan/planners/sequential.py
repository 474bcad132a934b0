"""``sequential``: every part after the one before it: the single-stream order in grid form."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pipeline.layout import Layout
from pipeline.plan.plan import Segment
from pipeline.read.conversation import Part


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No options."""


class Planner:
    """One segment per part, each after the one before it."""

    def __init__(self, layout: Layout, options: Options) -> None:
        # Results of parallel calls were recorded one after another; one lane is enough for that.
        self._stream = {role: (layout.lanes(target) or [target])[0] for role, target in layout.roles.items()}

    def __call__(self, parts: Sequence[Part]) -> list[Segment]:
        return [
            Segment(self._stream[part.role], i, 0, len(part.text), None, ((i - 1, None),) if i else ())
            for i, part in enumerate(parts)
        ]
