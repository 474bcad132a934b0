"""A run's teacher as the driver sees it: which model answers, where answers are kept, and what it has cost."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.engines.spec import GET_VLLM, EngineSpec
from pipeline.errors import UserError
from pipeline.location import is_url, redact
from pipeline.recipe import Recipe, engine_for, from_manifest
from pipeline.store.manifest import Manifest, Teacher

if TYPE_CHECKING:
    from jobs.executor import Executor
    from jobs.progress import Progress
    from jobs.teaching import TeacherSetup
    from pipeline.engines.protocol import Model


def teacher_setup(
    recipe: Recipe,
    engine: EngineSpec | None,
    answers: str | None,
    out: str,
    rounds: int,
    here: bool = False,
    notice: Callable[[str], None] = lambda _: None,
) -> TeacherSetup | None:
    """What workers need to ask a model; None where the recipe's planner is a rule.

    ``rounds``: how many times the recipe's attempts a question may be asked. ``here``: all workers are on this machine.
    ``notice`` tells the user something.
    Raises :class:`UserError` where engine, planner and layout do not go together, where answers cannot be kept, and where
    no model can be found: whatever can be known before any work.
    """
    spec = engine_for(recipe, engine, answers)
    if spec is None:
        return None
    import asyncio  # with what follows, not for who converts by rule

    from jobs.teaching import TeacherSetup
    from pipeline.engines.identify import identify, pin
    from pipeline.teach.answers import check_place
    from pipeline.teach.shard import teaching_planner

    teaching_planner(recipe)
    place = check_place(answers or beside(out, here))
    # Importing it takes seconds, and is left to the workers; where they are on other machines, so is this.
    if here and spec.kind == "vllm" and find_spec("vllm") is None:
        raise UserError(f"--engine vllm: vllm is not installed here; {GET_VLLM}")
    spec = pin(spec, notice, here)
    return TeacherSetup(spec, asyncio.run(identify(spec)), place, rounds)


def beside(out: str, here: bool = True) -> str:
    """Where answers are kept unless it is said. Raises :class:`UserError` where that cannot be."""
    if is_url(out):
        which = "a directory" if here else "a directory that all nodes of the cluster share"
        raise UserError(f"--out {redact(out)}: answers cannot be kept beside it; name {which} with --answers")
    return out.rstrip("/") + ".answers"


def as_teacher(model: Model) -> Teacher:
    """A model as the manifest names it."""
    return Teacher(model.name, model.revision)


def planned_by(recipe: Recipe, planned: Manifest) -> Recipe:
    """The recipe with the planner, and what it was told, that made a dataset's plans: not the one that is not asked."""
    before = from_manifest(planned.recipe, planned.layout)
    return msgspec.structs.replace(
        recipe, planner=before.planner, options=before.options, prompt=before.prompt, teacher=before.teacher, engine={}
    )


def cost(setup: TeacherSetup, progress: Progress, executor: Executor) -> dict[str, Any]:
    """What asking has cost in this run, for ``run.json`` and the summary; a conversation is one of those planned now."""
    from pipeline.teach.counters import Counters

    asked, seconds = progress.asked or Counters(), progress.working_seconds
    conversations = max(progress.counts_now.read - progress.counts_now.filtered, 1)
    gpu_seconds = round(asked.busy_seconds * executor.gpus * 1000 / conversations, 1) if executor.gpus else None
    return {
        "model": setup.model.name,
        "revision": setup.model.revision,
        "answers": setup.answers,
        "damaged_answers": progress.fault_count,
        "damaged": list(progress.faults),
        "asked": asked.asked,
        "from_store": asked.stored,
        "accepted": asked.accepted,
        "retried": asked.retried,
        "rejected": asked.rejected,
        "engine_restarts": asked.restarts,
        "prompt_tokens": asked.prompt_tokens,
        "cached_tokens": asked.cached_tokens,
        "output_tokens": asked.output_tokens,
        "cached_share": round(asked.cached_tokens / asked.prompt_tokens, 4) if asked.prompt_tokens else None,
        "output_tokens_per_second": round(asked.output_tokens / max(seconds, 1e-9), 1),
        "prompt_tokens_per_conversation": round(asked.prompt_tokens / conversations, 1),
        "output_tokens_per_conversation": round(asked.output_tokens / conversations, 1),
        "engine_occupancy": round(progress.occupancy, 5),
        "gpu_seconds_per_1000_conversations": gpu_seconds,
    }
