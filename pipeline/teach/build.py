"""An engine, a store and who asks them, for runs and previews alike."""

from __future__ import annotations

from pipeline.engines.build import build_engine
from pipeline.engines.protocol import Model
from pipeline.engines.spec import EngineSpec
from pipeline.recipe import Recipe
from pipeline.teach.answers import AnswerStore
from pipeline.teach.asking import Asker
from pipeline.teach.patience import patience
from pipeline.teach.shard import probe_for


def build_asker(
    spec: EngineSpec, recipe: Recipe, model: Model, answers: str, rounds: int = 1
) -> tuple[Asker, AnswerStore]:
    """Who asks the engine of ``spec`` for a recipe with a prompt, and the store in ``answers`` that it asks first.

    ``model``: what will answer. ``rounds``: how many times the recipe's attempts a question may be asked. Both are to be
    closed. Raises UserError, and leaves nothing open, where engine and store cannot be had.
    """
    assert recipe.teacher is not None
    engine, probe = build_engine(spec), probe_for(recipe)
    store = AnswerStore(answers)
    asker = Asker(
        engine,
        store,
        recipe.teacher,
        model=model,
        concurrency=spec.concurrency,
        probe=probe,
        warm_up=spec.kind == "vllm" or len(spec.where) == 1,
        shared=spec.kind == "http",
        rounds=rounds,
        **patience(spec)._asdict(),
    )
    return asker, store
