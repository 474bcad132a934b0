"""The engine behind a server, against the server that most people run: constraints really bind there, or do not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tiny_model import CONTEXT

from pipeline.engines.build import build_engine
from pipeline.engines.probe import probe
from pipeline.engines.protocol import Answer, Constraint, Engine, Message, Model, Request, RequestRefused, Sampling
from pipeline.engines.spec import parse_spec

_SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


def _request(**fields: Any) -> Request:
    fields.setdefault("sampling", Sampling(max_tokens=30))
    return Request((Message("system", "be brief"), Message("user", "which colour is it? " * 30)), **fields)


async def _answer(engine: Engine, requests: list[Request]) -> list[Answer | BaseException]:
    return await asyncio.gather(*map(engine.ask, requests), return_exceptions=True)


def test_everything_that_teachers_rely_on_holds_on_a_real_server(
    vllm_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    async def run() -> tuple[Model, frozenset[str], list[Answer | BaseException]]:
        spec = parse_spec(vllm_server)
        assert spec is not None
        engine = build_engine(spec)
        try:
            model = await engine.start()
            bound = await probe(engine, model, wished=["regex", "grammar"], tokens=1000)
            await engine.ask(_request())
            found = await _answer(
                engine,
                [
                    _request(constraint=Constraint("json", _SCHEMA)),
                    _request(sampling=Sampling(max_tokens=CONTEXT + 1)),
                    _request(constraint=Constraint("regex", "((")),
                    Request(tokens=(300, 301, 302), sampling=Sampling(max_tokens=7)),
                    _request(template={"enable_thinking": False}),
                ],
            )
            return model, bound, found
        finally:
            await engine.close()

    model, bound, (kept, long, wrong, by_tokens, silent) = asyncio.run(run())
    assert model == Model("tiny", None, CONTEXT)
    assert bound == {"json", "regex", "grammar"}
    assert isinstance(kept, Answer) and json.loads(kept.text)["colour"] in ("red", "green")
    assert kept.cached_tokens > 0 and kept.finish_reason == "stop"
    assert isinstance(long, RequestRefused) and str(CONTEXT) in str(long)
    assert isinstance(wrong, RequestRefused)
    assert isinstance(by_tokens, Answer) and by_tokens.prompt_tokens == 3 and by_tokens.output_tokens == 7
    assert isinstance(silent, Answer) and silent.prompt_tokens > kept.prompt_tokens


def test_the_older_name_of_a_constraint_does_nothing_there(vllm_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why ``structured_outputs`` is sent, and why a probe is needed: status 200 proves nothing."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    async def run() -> Answer:
        spec = parse_spec(vllm_server, args=[f"guided_json={json.dumps(_SCHEMA)}"])
        assert spec is not None
        engine = build_engine(spec)
        try:
            await engine.start()
            return await engine.ask(_request())
        finally:
            await engine.close()

    answer = asyncio.run(run())
    assert answer.output_tokens == 30
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(answer.text)
