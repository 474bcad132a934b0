"""Short texts that a teacher may write or leave: ``{"thoughts": ["…", "…"]}``, or an empty list to pass."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from pipeline.engines.protocol import Constraint
from pipeline.teach.planners.answers import one_line, read_json

#: How many remarks one call may make, and how long each may be.
Most = Annotated[int, msgspec.Meta(ge=1, le=20)]
Characters = Annotated[int, msgspec.Meta(ge=20, le=4000)]

#: A token is at least a byte and a character at most four, so no answer that is written plainly is cut, whatever the
#: vocabulary. As a JSON escape a character is six, a pair of escapes twelve: in the worst vocabulary such an answer is cut
#: beyond two thirds, or one third, of the characters that are allowed, and asked for again. To allow for that too would
#: take as much from every prompt: it and ``max_tokens`` must fit into the context together.
TOKENS_PER_CHARACTER = 4


class Remarks(NamedTuple):
    """The form of such answers."""

    key: str
    most: int
    characters: int

    @property
    def constraint(self) -> Constraint:
        """What engines are given."""
        remark = {"type": "string", "minLength": 1, "maxLength": self.characters}
        remarks = {"type": "array", "items": remark, "maxItems": self.most}
        return Constraint(
            "json",
            {
                "type": "object",
                "properties": {self.key: remarks},
                "required": [self.key],
                "additionalProperties": False,
            },
        )

    @property
    def max_tokens(self) -> int:
        """No valid answer is longer, but for one of escapes (:data:`TOKENS_PER_CHARACTER`) or endless blanks."""
        return self.most * (TOKENS_PER_CHARACTER * self.characters + 4) + len(self.example) + 8

    @property
    def example(self) -> str:
        """An answer that passes."""
        return f'{{"{self.key}":[]}}'

    def parse(self, text: str) -> list[str]:
        """The remarks, each as one line; blank ones say nothing and are left out. Raises ValueError."""
        answer = read_json(text, dict[str, list[str]])
        if list(answer) != [self.key]:
            raise ValueError(f'it must be an object with the one key "{self.key}"')
        remarks = answer[self.key]
        if len(remarks) > self.most:
            raise ValueError(f"{len(remarks)} {self.key}, but at most {self.most} are allowed")
        for remark in remarks:
            if len(remark) > self.characters:
                raise ValueError(
                    f"one of the {self.key} has {len(remark)} characters; at most {self.characters} are allowed"
                )
        return [line for line in map(one_line, remarks) if line]
