"""How a teacher is asked: what a recipe says under ``teacher``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from pipeline.engines.protocol import Sampling
from pipeline.errors import UserError

#: Seeds that every engine takes.
_SEEDS = 1 << 31

#: No engine draws hotter.
_HOTTEST = 2.0


class TeacherSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sampling, and what happens after an invalid answer. All of it is part of a run's identity."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=_HOTTEST)] = 0.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    #: How often a question is asked before its conversation is rejected.
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4
    #: Added to the temperature with every attempt.
    warmer: Annotated[float, msgspec.Meta(ge=0, le=_HOTTEST)] = 0.3
    seed: Annotated[int, msgspec.Meta(ge=0, lt=_SEEDS)] = 0
    #: Arguments of the model's chat template, such as ``{"enable_thinking": false}``.
    template: dict[str, Any] = {}

    def sampling(self, attempt: int, max_tokens: int) -> Sampling:
        """How attempt number ``attempt``, from 0, is drawn.

        The seed depends on nothing else: two conversations that ask the same are given the same answer. Attempts beyond
        ``attempts``, which a retry makes, are as warm as those after the first were, with other seeds. Those are also other
        seeds than with another number of attempts: what was asked for with more of them is none of a retry's answers.
        """
        beyond = attempt >= self.attempts
        warmth = 1 + attempt % self.attempts if beyond else attempt
        draw = attempt * 0x9E3779B1 + beyond * self.attempts * 0x85EBCA77  # far apart: seeds 0 and 1 share no draw
        return Sampling(
            temperature=round(min(self.temperature + warmth * self.warmer, _HOTTEST), 6),
            top_p=self.top_p,
            max_tokens=max_tokens,
            seed=(self.seed + draw) % _SEEDS,
        )


def teacher_settings(document: Mapping[str, Any], where: str) -> TeacherSettings:
    """Settings from a recipe. Raises :class:`UserError` naming ``where``, key and remedy."""
    known = TeacherSettings.__struct_fields__
    for key in document:
        if key not in known:
            raise UserError(f"{where}: teacher.{key}: no such setting; known are {', '.join(known)}")
    for key, value in document.items():
        try:
            msgspec.convert({key: value}, TeacherSettings)
        except msgspec.ValidationError as error:
            raise UserError(f"{where}: teacher.{key}: {str(error).partition(' - at ')[0]}, not {value!r}") from None
    made = msgspec.convert(dict(document), TeacherSettings)
    # The order in which somebody wrote the arguments must not make it another question.
    return msgspec.structs.replace(made, template=dict(sorted(made.template.items())))
