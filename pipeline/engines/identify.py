"""Which model will answer, found out without loading one."""

from __future__ import annotations

from pipeline.engines.build import build_engine
from pipeline.engines.protocol import Model
from pipeline.engines.spec import EngineSpec


async def identify(spec: EngineSpec) -> Model:
    """What ``start`` of the engine will say, but for the context.

    Raises :class:`pipeline.errors.UserError` where no server answers.
    """
    if spec.kind == "vllm":
        from pipeline.engines.local_model import model_of

        return model_of(spec)
    engine = build_engine(spec)
    try:
        return await engine.start()
    finally:
        await engine.close()
