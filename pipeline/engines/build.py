"""From what the options say to an engine. An implementation is imported only where it is used."""

from __future__ import annotations

from pathlib import Path

from pipeline.engines.protocol import Engine
from pipeline.engines.spec import EngineSpec


def build_engine(spec: EngineSpec) -> Engine:
    """The engine, not started yet.

    Raises :class:`pipeline.errors.UserError` where it cannot be had here or its arguments are wrong.
    """
    if spec.kind == "vllm":
        from pipeline.engines.vllm import VllmEngine

        return VllmEngine(spec)
    if spec.kind == "http":
        from pipeline.engines.http import HttpEngine

        return HttpEngine(spec)
    from pipeline.engines.scripted import ScriptedEngine, read_script

    return ScriptedEngine(read_script(Path(spec.where[0])), name=spec.model or "scripted")
