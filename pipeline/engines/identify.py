"""Which model will answer, found out without loading one."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.engines.build import build_engine
from pipeline.engines.protocol import Model, NoServer
from pipeline.engines.spec import EngineSpec, request_revision


def pin(spec: EngineSpec, notice: Callable[[str], None], here: bool = False) -> EngineSpec:
    """The spec that all workers build their engines from: a hub model may get a new commit while they do.

    To be called once, by whoever starts the workers, before :func:`identify`. ``notice`` is told where it cannot be pinned.
    ``here``: all workers are on this machine. Raises :class:`pipeline.errors.UserError` where there is no such model then.
    """
    if spec.kind == "vllm":
        from pipeline.engines.local_model import pinned

        return pinned(spec, notice, here)
    return spec


async def identify(spec: EngineSpec) -> Model:
    """What ``start`` of the engine will say, but for the context.

    Where no server answers, the one named by ``--model`` is believed to: stored answers need no server.
    Raises :class:`pipeline.errors.UserError` where no server answers and no model is named.
    """
    if spec.kind == "vllm":
        from pipeline.engines.local_model import model_of

        return model_of(spec)
    engine = build_engine(spec)
    try:
        return await engine.start()
    except NoServer:
        if spec.model is None:
            raise
        return Model(spec.model, request_revision(spec))
    finally:
        await engine.close()
