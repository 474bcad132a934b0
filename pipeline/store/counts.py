"""What became of the records, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of one shard, or of many. In records, ``read = converted + quarantined + filtered``, always."""

    read: int = 0
    converted: int = 0
    quarantined: int = 0
    filtered: int = 0
    #: Converted records of which the later turns were cut off.
    truncated: int = 0
    #: Grids: one per converted record, or one per window.
    rows: int = 0
    #: Cells that are not silent.
    tokens: int = 0
    #: Content tokens that equal the silence token, where that is an ordinary token.
    silence_in_content: int = 0
    #: Parts whose role the layout drops, by role.
    dropped_parts: dict[str, int] = field(default_factory=dict)
    #: Quarantined records by reason code.
    quarantine_reasons: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        sums: dict[str, Any] = {}
        for name in (item.name for item in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict):
                sums[name] = dict(sorted((Counter(mine) + Counter(theirs)).items()))
            else:
                sums[name] = mine + theirs
        return Counts(**sums)
