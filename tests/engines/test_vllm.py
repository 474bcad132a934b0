"""The real engine with a tiny model of random weights: what such a model says under a constraint, it would never say
otherwise."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from tiny_model import CONTEXT

from pipeline.engines import vllm
from pipeline.engines.identify import identify
from pipeline.engines.local_model import describe_directory
from pipeline.engines.probe import probe
from pipeline.engines.protocol import Answer, Constraint, EngineLost, Message, Request, RequestRefused, Sampling
from pipeline.engines.spec import EngineSpec, checked, parse_spec
from pipeline.engines.vllm import VllmEngine
from pipeline.errors import UserError

Value = TypeVar("Value")

_NUMBER = {"type": "integer", "minimum": 0, "maximum": 40}
_SCHEMA = {
    "type": "object",
    "properties": {"after": {"type": "array", "items": _NUMBER, "minItems": 3, "maxItems": 3}},
    "required": ["after"],
    "additionalProperties": False,
}


class _Together:
    """Runs things in the loop of the shared engine."""

    def __init__(self, runner: asyncio.Runner, engine: VllmEngine) -> None:
        self._runner = runner
        self.engine = engine

    def run(self, what: Coroutine[Any, Any, Value]) -> Value:
        return self._runner.run(what)

    def ask(self, *requests: Request) -> list[Answer | BaseException]:
        async def ask() -> list[Answer | BaseException]:
            return await asyncio.gather(*map(self.engine.ask, requests), return_exceptions=True)

        return self.run(ask())

    def answers(self, *requests: Request) -> list[Answer]:
        found = self.ask(*requests)
        assert all(isinstance(answer, Answer) for answer in found), found
        return found  # type: ignore[return-value]


@pytest.fixture
def together(runner: asyncio.Runner, vllm_engine: VllmEngine) -> _Together:
    return _Together(runner, vllm_engine)


def _request(text: str = "hello", **fields: Any) -> Request:
    sampling = fields.pop("sampling", Sampling(temperature=1.0, max_tokens=40))
    return Request((Message("system", "be brief"), Message("user", text)), sampling=sampling, **fields)


def test_constraints_bind_for_every_seed(together: _Together) -> None:
    sampling = [Sampling(temperature=1.5, max_tokens=100, seed=seed) for seed in range(16)]
    kinds = [
        Constraint("json", _SCHEMA),
        Constraint("regex", "[ab]{5}-[0-9]"),
        Constraint("grammar", 'root ::= "x" [0-9] [0-9] [0-9] "y"'),
    ]
    requests = [_request(sampling=one, constraint=kind) for kind in kinds for one in sampling]
    found = together.answers(*requests)
    assert {answer.finish_reason for answer in found} == {"stop"}
    as_json, as_regex, as_grammar = ([answer.text for answer in found[at : at + 16]] for at in (0, 16, 32))
    for text in as_json:
        numbers = json.loads(text)["after"]
        assert len(numbers) == 3 and all(0 <= number <= 40 for number in numbers)
        assert " " not in text and "\n" not in text
    assert all(re.fullmatch("[ab]{5}-[0-9]", text) for text in as_regex)
    assert all(re.fullmatch("x[0-9]{3}y", text) for text in as_grammar)
    assert len(set(as_regex)) > 8


def test_a_free_answer_is_nothing_like_it(together: _Together) -> None:
    [answer] = together.answers(_request())
    assert answer.output_tokens == 40 and answer.finish_reason == "length"
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(answer.text)


def test_the_probe_finds_a_good_engine_good(together: _Together) -> None:
    model = together.run(together.engine.start())  # it lives: nothing is loaded again
    bound = together.run(probe(together.engine, model, wished=["regex", "grammar"], tokens=CONTEXT))
    assert bound == {"json", "regex", "grammar"}
    with pytest.raises(UserError, match=rf"context of tiny is {CONTEXT} tokens"):
        together.run(probe(together.engine, model, tokens=CONTEXT + 1))


def test_the_model_is_known_before_it_is_loaded(together: _Together, vllm_spec: EngineSpec) -> None:
    model = together.run(together.engine.start())
    assert model.name == "tiny" and model.revision and model.context == CONTEXT
    assert asyncio.run(identify(vllm_spec)) == model._replace(context=None)


def test_a_seed_draws_the_same_answer_again(together: _Together) -> None:
    first, again, other = (
        together.answers(_request(sampling=Sampling(temperature=1.0, max_tokens=20, seed=seed)))[0].text
        for seed in (7, 7, 8)
    )
    assert first == again != other


def test_shared_text_comes_from_the_cache(together: _Together) -> None:
    shared = " ".join(f"word{number}" for number in range(150))
    [cold] = together.answers(_request(shared + " one"))
    warm = together.answers(*(_request(f"{shared} {number}") for number in range(8)))
    assert cold.cached_tokens < 100
    assert sum(answer.cached_tokens for answer in warm) >= 0.8 * sum(answer.prompt_tokens for answer in warm) > 0


def test_what_does_not_fit_is_refused_and_costs_its_neighbours_nothing(together: _Together) -> None:
    found = together.ask(
        _request("word " * 2 * CONTEXT),
        _request(sampling=Sampling(max_tokens=CONTEXT)),
        _request(constraint=Constraint("regex", "((")),
        _request(constraint=Constraint("grammar", "root ::= (")),
        _request(constraint=Constraint("json", {"type": "nothing of the kind"})),
        Request(tokens=(1 << 30,), sampling=Sampling(max_tokens=5)),
        _request(),
    )
    assert [type(answer) for answer in found] == [RequestRefused] * 6 + [Answer]
    assert f"context of {CONTEXT}" in str(found[1])


def test_token_ids_are_taken_as_they_are(together: _Together, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    request = _request(sampling=Sampling(max_tokens=20))
    chat = [{"role": message.role, "content": message.content} for message in request.messages]
    tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    by_messages, by_tokens = together.answers(request, Request(tokens=tuple(tokens), sampling=request.sampling))
    assert by_tokens.text == by_messages.text and by_tokens.prompt_tokens == by_messages.prompt_tokens == len(tokens)


def test_arguments_of_the_chat_template_reach_it(together: _Together) -> None:
    plain, silent = together.answers(_request(), _request(template={"enable_thinking": False}))
    assert silent.prompt_tokens > plain.prompt_tokens


def test_giving_up_a_request_leaves_the_engine_whole(together: _Together) -> None:
    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(together.engine.ask(_request(sampling=Sampling(max_tokens=900))), 0.05)

    together.run(give_up())
    assert together.answers(_request())[0].output_tokens == 40


@pytest.mark.usefixtures("tiny_model")
@pytest.mark.parametrize(
    ("model", "arg", "said"),
    [
        ("m", "tensor_paralel_size=2", "did you mean tensor_parallel_size"),
        ("m", "zzzzzz=2", "no such engine argument"),
        ("/nowhere/model", "seed=1", "--model /nowhere/model: no such directory"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_loaded(model: str, arg: str, said: str) -> None:
    spec = parse_spec("vllm", model, [arg])
    assert spec is not None
    with pytest.raises(UserError, match=said):
        VllmEngine(spec)


def test_a_model_that_cannot_be_loaded_is_one_clear_sentence(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in tiny_model.iterdir():
        if not file.name.startswith("config"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "no-such-thing"}')
    spec = parse_spec("vllm", str(tmp_path))
    assert spec is not None
    with pytest.raises(UserError, match="cannot be loaded") as error:
        asyncio.run(VllmEngine(spec).start())
    assert "\n" not in str(error.value)
    assert "once more" not in caplog.text  # it would be the same again


def test_a_models_directory_is_known_by_its_content(tmp_path: Path, tiny_model: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / ".cache").write_text("of no account")
    assert describe_directory(copy) == describe_directory(tiny_model)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert describe_directory(copy) != describe_directory(tiny_model)


def test_of_vllms_own_arguments_only_the_token_is_a_secret() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    def is_refused(name: str) -> bool:
        try:
            checked(EngineSpec(kind="vllm", model="m", args=((name, "main" if name == "revision" else 1),)))
        except UserError:
            return True
        return False

    assert set(filter(is_refused, AsyncEngineArgs.__dataclass_fields__)) == {"model", "hf_token"}


def test_ctrl_c_in_the_terminal_is_not_for_the_engine(together: _Together) -> None:
    """It goes to every process of the terminal's group; ours ends the engine in its own time, and in silence."""
    engine = together.engine
    for number in engine.processes:
        os.kill(number, signal.SIGINT)
    assert together.answers(_request())[0].output_tokens == 40


def test_an_engine_that_is_given_up_as_it_starts_ends_at_once(vllm_spec: EngineSpec) -> None:
    """Whoever has pressed Ctrl-C does not wait for a model to be loaded."""
    me = psutil.Process()
    before = set(me.children(recursive=True))

    def started() -> set[psutil.Process]:
        return {process for process in set(me.children(recursive=True)) - before if vllm._is_of_an_engine(process)}

    async def give_up() -> float:
        starting = asyncio.create_task(VllmEngine(vllm_spec).start())
        while not started():
            await asyncio.sleep(0.05)
            assert not starting.done()
        starting.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await asyncio.get_running_loop().shutdown_default_executor()  # the thread that builds
        return time.monotonic() - began

    assert asyncio.run(give_up()) < 8
    assert not started()


# From here on the engine is hurt: these come last.


def test_an_engine_whose_process_is_killed_is_lost_and_replaced_whole(
    together: _Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try at a new one meets what passes: a port that another has just taken."""
    engine, old = together.engine, together.engine.processes
    long = [_request(str(number), sampling=Sampling(max_tokens=900)) for number in range(8)]
    assert old and all(psutil.pid_exists(number) for number in old)
    found = together.run(_while_asking(engine, long, old[0], signal.SIGKILL))
    assert {type(answer) for answer in found} == {EngineLost}
    with pytest.raises(EngineLost):
        together.run(engine.ask(_request()))
    taken = [OSError(errno.EADDRINUSE, "address already in use")]
    build = vllm._build

    async def build_later(arguments: dict[str, Any]) -> Any:
        if taken:
            raise taken.pop()
        return await build(arguments)

    monkeypatch.setattr(vllm, "_build", build_later)
    monkeypatch.setattr(vllm, "_PAUSE_SECONDS", 0.1)
    model = together.run(engine.start())
    assert model.name == "tiny" and not taken
    assert not any(psutil.pid_exists(number) for number in old)
    assert together.answers(_request())[0].output_tokens == 40


def test_an_engine_that_hangs_is_lost_and_nothing_of_it_is_left(together: _Together) -> None:
    engine, old = together.engine, together.engine.processes
    assert engine._running is not None
    engine._running._timeout = 2.0
    found = together.run(_while_asking(engine, [_request(sampling=Sampling(max_tokens=900))], old[0], signal.SIGSTOP))
    assert [type(answer) for answer in found] == [EngineLost]
    assert "no sign of life" in str(found[0])
    until = time.monotonic() + 10
    while any(psutil.pid_exists(number) and psutil.Process(number).status() != "zombie" for number in old):
        assert time.monotonic() < until
        time.sleep(0.1)


async def _while_asking(
    engine: VllmEngine, requests: list[Request], process: int, signal_number: int
) -> list[Answer | BaseException]:
    asks = [asyncio.create_task(engine.ask(request)) for request in requests]
    await asyncio.sleep(0.2)
    os.kill(process, signal_number)
    return await asyncio.gather(*asks, return_exceptions=True)
