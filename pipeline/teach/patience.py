"""How long an engine is waited for, and how often it may be lost: the same for runs and for previews."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.engines.spec import EngineSpec

#: Engines find out by themselves what hangs, and try again; this is for one that does not.
_TIMEOUTS = 3
#: Engines that end every wait of their own, which may be long: a server says with ``Retry-After`` when it has time.
_OWN_PATIENCE = frozenset({"http"})
#: How often an engine may be lost without an answer in between. Servers have been asked eight times by then, each time.
_LOSSES = {"vllm": 8, "http": 4, "scripted": 8}
#: A server has failed over the request eight times each time.
_DOUBTS = {"vllm": 3, "http": 2, "scripted": 3}


class Patience(NamedTuple):
    """What :class:`pipeline.teach.asking.Asker` is to have patience for."""

    #: Seconds for one request; None: the engine sees to it.
    timeout: float | None
    losses: int
    #: How often it may be lost over one request before that is asked alone, and then before that is to blame.
    doubts: int


def patience(spec: EngineSpec) -> Patience:
    """As much as an engine of this kind needs."""
    timeout = None if spec.kind in _OWN_PATIENCE else _TIMEOUTS * spec.timeout
    return Patience(timeout, _LOSSES[spec.kind], _DOUBTS[spec.kind])
