"""Turns: a turn begins with the first part of the conversation, and with every user part that follows the model."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.read.conversation import INPUT_ROLES, Part


def turn_starts(parts: Sequence[Part]) -> list[int]:
    """The index of the first part of every turn.

    System text that comes right before a user part belongs to that part's turn.
    """
    if not parts:
        return []
    starts = [0]
    model_spoke = False
    for index, part in enumerate(parts):
        if part.role in INPUT_ROLES:
            if part.role != "result" and model_spoke:
                starts.append(index)
                model_spoke = False
        else:
            model_spoke = True
    return starts
