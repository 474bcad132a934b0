"""The engine behind a server, against real HTTP servers that misbehave."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stub_server import Fault, Faults, StubServer, echo, random_faults

from pipeline.engines.build import build_engine
from pipeline.engines.http import HttpEngine, _pause
from pipeline.engines.identify import identify
from pipeline.engines.probe import probe
from pipeline.engines.protocol import Answer, Constraint, EngineLost, Message, Model, Request, RequestRefused, Sampling
from pipeline.engines.servers import Balancer
from pipeline.engines.spec import EngineSpec, parse_spec
from pipeline.errors import UserError
from pipeline.recipe import load_recipe
from pipeline.teach.shard import probe_for

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIPELINE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def _spec(*servers: StubServer, model: str | None = None, **settings: Any) -> EngineSpec:
    spec = parse_spec(",".join(server.url for server in servers), model, **settings)
    assert spec is not None
    return spec


def _engine(spec: EngineSpec, tries: int = 8) -> HttpEngine:
    return HttpEngine(spec, tries=tries, first_wait=0.002, longest_wait=0.02)


def _run(engine: HttpEngine, use: Callable[[HttpEngine, Model], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        try:
            return await use(engine, await engine.start())
        finally:
            await engine.close()
            await engine.close()

    return asyncio.run(run())


def _ask(engine: HttpEngine, *requests: Request) -> list[Answer]:
    async def ask(engine: HttpEngine, _model: Model) -> list[Answer]:
        return list(await asyncio.gather(*(engine.ask(request) for request in requests)))

    answers: list[Answer] = _run(engine, ask)
    return answers


def _request(text: str = "hello there", **fields: Any) -> Request:
    return Request((Message("system", "be brief"), Message("user", text)), **fields)


def _always(fault: Fault) -> Faults:
    return lambda _body, _seen: fault


def _first(times: int, fault: Fault) -> Faults:
    return lambda _body, seen: fault if seen < times else None


def test_a_request_says_all_that_it_holds_and_an_answer_is_read_whole() -> None:
    request = _request(
        sampling=Sampling(temperature=0.7, top_p=0.9, max_tokens=33, seed=5),
        constraint=Constraint("json", _SCHEMA),
        template={"enable_thinking": False},
    )
    with StubServer(lambda _body: "fine, thanks") as server:
        engine = _engine(_spec(server, args=["top_k=3"]))
        [answer] = _ask(engine, request)
    assert answer == Answer("fine, thanks", "stop", prompt_tokens=4, output_tokens=2, cached_tokens=2)
    assert server.bodies == [
        {
            "model": "stub",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there"}],
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 33,
            "seed": 5,
            "chat_template_kwargs": {"enable_thinking": False},
            "structured_outputs": {"json": _SCHEMA},
            "top_k": 3,
        }
    ]


def test_a_server_that_is_no_vllm_gets_a_response_format() -> None:
    with StubServer(owner="somebody") as server:
        _ask(_engine(_spec(server)), _request(constraint=Constraint("json", _SCHEMA)))
        with pytest.raises(RequestRefused, match="takes no regex"):
            _ask(_engine(_spec(server)), _request(constraint=Constraint("regex", "a+")))
    [body] = server.bodies
    assert "structured_outputs" not in body
    assert body["response_format"]["json_schema"] == {"name": "answer", "schema": _SCHEMA, "strict": True}


def test_token_ids_go_where_they_are_understood() -> None:
    with StubServer() as server:
        [answer] = _ask(_engine(_spec(server)), Request(tokens=(5, 6, 7)))
    assert server.bodies[0]["prompt"] == [5, 6, 7]
    assert answer.text.startswith("echo") and answer.prompt_tokens == 3


def test_the_model_is_found_where_there_is_one_to_find() -> None:
    async def described(_engine: HttpEngine, model: Model) -> Model:
        return model

    with StubServer(models=["one"], context=4096) as one, StubServer(models=["one", "two"], context=2048) as two:
        assert _run(_engine(_spec(one, two)), described) == Model("one", None, 2048)
        assert _run(_engine(_spec(two, model="two", args=["top_k=3"])), described) == Model("two", '{"top_k": 3}', 2048)
        with pytest.raises(UserError, match="which model"):
            _run(_engine(_spec(two)), described)
        with pytest.raises(UserError, match=r"--model three: .* has one, two"):
            _run(_engine(_spec(two, model="three")), described)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=500),
        Fault("status", status=503),
        Fault("status", status=408),
        Fault("status", status=409),
        Fault("status", status=429),
        Fault("drop"),
        Fault("garbage"),
        Fault("nonsense"),
    ],
    ids=lambda fault: f"{fault.kind}{fault.status if fault.kind == 'status' else ''}",
)
def test_what_may_go_well_the_next_time_is_tried_again(fault: Fault) -> None:
    with StubServer(faults=_first(2, fault)) as server:
        answers = _ask(_engine(_spec(server)), *(_request(f"number {number}") for number in range(5)))
        assert len({answer.text for answer in answers}) == 5
        assert len(server.bodies) == 15
    too_much_to_do = fault.status in (408, 409, 429)
    with StubServer(faults=_always(fault)) as bad:
        engine = HttpEngine(_spec(bad), tries=3, first_wait=0.002, longest_wait=0.02, longest_silence=1.2)
        with pytest.raises(EngineLost, match="has answered nothing for 1 s" if too_much_to_do else "sent 3 times"):
            _ask(engine, _request())
        assert len(bad.bodies) == 3 or too_much_to_do


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"choices": []},
        {"choices": [{}, {}]},
        {"choices": None},
        {"choices": [{"finish_reason": "stop", "message": {"content": "a"}}], "usage": {"prompt_tokens": "many"}},
        {"error": {"message": "all is lost"}},
    ],
)
def test_a_body_of_another_shape_is_tried_again_not_a_crash(odd: dict[str, Any]) -> None:
    with StubServer(lambda _body: odd) as server, pytest.raises(EngineLost, match=r"makes no sense|instead of one"):
        _ask(_engine(_spec(server), tries=2), _request())
    assert len(server.bodies) == 2


def test_an_answer_without_an_end_is_handed_on_as_such() -> None:
    with StubServer(lambda _body: {"choices": [{"message": {"content": None}, "finish_reason": None}]}) as server:
        assert _ask(_engine(_spec(server)), _request()) == [Answer("", "unknown")]
    with StubServer(faults=_always(Fault("truncate"))) as server:
        [answer] = _ask(_engine(_spec(server)), _request())
    assert answer.finish_reason == "length"


def test_a_pause_that_the_server_asks_for_is_kept() -> None:
    with StubServer(faults=_first(1, Fault("status", status=429, retry_after="1"))) as server:
        began = time.monotonic()
        _ask(_engine(_spec(server)), _request())
        assert 1.0 <= time.monotonic() - began < 5.0
    assert _pause("7") == 7.0
    assert _pause("Fri, 01 Jan 2100 00:00:00 GMT") == 300.0
    assert [_pause(odd) for odd in (None, "", "soon", "-3", "nan", "Fri, 01 Jan 1999 00:00:00 GMT")] == [0.0] * 6


def test_a_server_that_asks_for_pauses_only_is_given_up_in_the_end() -> None:
    """However many wait for it: most of them never get to send anything."""
    with StubServer(faults=_always(Fault("status", status=429, retry_after="0.2"))) as server:
        engine = HttpEngine(_spec(server), tries=1000, first_wait=0.002, longest_silence=0.7)

        async def ask(engine: HttpEngine, _model: Model) -> list[Any]:
            requests = (engine.ask(_request(f"{number}")) for number in range(20))
            return await asyncio.gather(*requests, return_exceptions=True)

        began = time.monotonic()
        lost = _run(engine, ask)
        assert all(isinstance(each, EngineLost) and "asks to be left alone" in str(each) for each in lost)
        assert 0.7 <= time.monotonic() - began < 5.0
        assert len(server.bodies) < 1000


def test_a_request_that_can_never_be_answered_is_refused_with_the_servers_words() -> None:
    said = "This model's maximum context length is 8192 tokens."
    with StubServer(faults=_always(Fault("status", status=400, message=said))) as server:
        with pytest.raises(RequestRefused, match="maximum context length is 8192"):
            _ask(_engine(_spec(server)), _request())
        assert len(server.bodies) == 1


@pytest.mark.parametrize(("status", "said"), [(403, "on this node"), (404, "end in /v1"), (402, "account")])
def test_what_the_user_must_mend_stops_the_run(status: int, said: str) -> None:
    with StubServer(faults=_always(Fault("status", status=status))) as server, pytest.raises(UserError, match=said):
        _ask(_engine(_spec(server)), _request())


def test_the_key_comes_from_the_environment_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with StubServer(key="sk-right") as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
        with pytest.raises(UserError, match="PIPELINE_API_KEY") as error:
            _ask(_engine(_spec(server)), _request())
        assert "invalid key: ***" in str(error.value)
        monkeypatch.setenv("PIPELINE_API_KEY", "sk-right")
        spec = _spec(server)
        _ask(_engine(spec), _request())
    assert server.headers[0]["Authorization"] == "Bearer sk-right"
    assert "sk-" not in caplog.text + repr(spec) + str(error.value)


def test_a_hanging_server_is_left_after_the_timeout() -> None:
    with StubServer(faults=_first(1, Fault("hang"))) as server:
        began = time.monotonic()
        [answer] = _ask(_engine(_spec(server, timeout=0.3)), _request())
        assert answer.text.startswith("echo") and 0.3 <= time.monotonic() - began < 3
    with (
        StubServer(faults=_always(Fault("hang"))) as server,
        pytest.raises(EngineLost, match=r"no answer within 0.2 s \(sent 2 times\)"),
    ):
        _ask(_engine(_spec(server, timeout=0.2), tries=8), _request())


def test_concurrency_is_bounded_and_used() -> None:
    with StubServer(faults=_always(Fault("slow", seconds=0.05))) as server:
        _ask(_engine(_spec(server, concurrency=5)), *(_request(str(number)) for number in range(30)))
    assert server.most_in_flight == 5


def test_work_goes_to_the_server_with_the_fewest_in_flight() -> None:
    with (
        StubServer(faults=_always(Fault("slow", seconds=0.2))) as slow,
        StubServer(faults=_always(Fault("slow", seconds=0.01))) as fast,
    ):
        _ask(_engine(_spec(slow, fast, concurrency=8)), *(_request(str(number)) for number in range(80)))
    assert len(slow.bodies) + len(fast.bodies) == 80
    assert len(fast.bodies) > 3 * len(slow.bodies) > 0


def test_a_server_that_is_down_is_left_alone_while_the_other_works() -> None:
    async def use(engine: HttpEngine, _model: Model) -> None:
        await engine.ask(_request("before"))
        dead.kill()
        await asyncio.gather(*(engine.ask(_request(f"while {number}")) for number in range(20)))

    with StubServer() as dead, StubServer() as alive:
        _run(_engine(_spec(dead, alive), tries=3), use)
        assert len(alive.bodies) >= 20


def test_a_balancer_rests_a_server_longer_with_every_failure_and_forgives_at_once() -> None:
    now = [0.0]
    balancer = Balancer(["a", "b"], clock=lambda: now[0])
    a = next(server for server in (balancer.choose(), balancer.choose()) if server.url == "a")
    rests = []
    for _ in range(9):
        balancer.failed(a, "status 500")
        rests.append(a.rests_until - now[0])
        assert {balancer.choose().url for _ in range(4)} == {"b"}
        now[0] = a.rests_until
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert balancer.trouble() == "", "b has done nothing wrong"
    b = next(server for server in (balancer.choose(), balancer.choose()) if server.url == "b")
    balancer.refused(b, "status 429")
    assert balancer.trouble() == "a: status 500; b: status 429"
    balancer.succeeded(a)
    assert balancer.trouble() == ""
    assert {balancer.choose().url for _ in range(4)} == {"a"}, "b has asked for a moment"
    now[0] += 1
    assert {balancer.choose().url for _ in range(4)} == {"a", "b"}


def test_a_lost_server_that_comes_back_serves_again() -> None:
    async def use(engine: HttpEngine, model: Model) -> None:
        server.kill()
        with pytest.raises(EngineLost):
            await engine.ask(_request())
        with pytest.raises(EngineLost, match="any more"):
            await engine.start()
        server.revive()
        assert await engine.start() == model
        assert (await engine.ask(_request())).text.startswith("echo")

    with StubServer() as server:
        _run(_engine(_spec(server), tries=2), use)


def test_no_server_at_all_is_the_users_to_mend() -> None:
    with StubServer() as server:
        spec = _spec(server)
    with pytest.raises(UserError, match=r"no server answers .* is it running"):
        _ask(_engine(spec), _request())


def test_an_address_that_is_no_api_is_the_users_to_mend() -> None:
    with StubServer() as server:
        spec = parse_spec(server.url.removesuffix("/v1"))
        assert spec is not None
        with pytest.raises(UserError, match="end in /v1"):
            _ask(_engine(spec), _request())


def test_a_thousand_requests_through_every_fault_give_the_answers_of_a_quiet_run() -> None:
    requests = [_request(f"conversation {number}", sampling=Sampling(seed=number)) for number in range(1000)]
    with StubServer() as quiet:
        expected = _ask(_engine(_spec(quiet)), *requests)
    faults = random_faults(0.3, seed=1)
    with StubServer(faults=faults) as one, StubServer(faults=random_faults(0.3, seed=2)) as two:
        found = _ask(_engine(_spec(one, two), tries=30), *requests)
    assert found == expected
    assert len(one.bodies) + len(two.bodies) > 1200


def test_giving_up_a_request_frees_its_place() -> None:
    async def use(engine: HttpEngine, _model: Model) -> str:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.ask(_request("hangs")), 0.1)
        return (await engine.ask(_request("works"))).text

    hangs: Faults = lambda body, _seen: Fault("hang") if body["messages"][-1]["content"] == "hangs" else None  # noqa: E731
    with StubServer(faults=hangs) as server:
        assert _run(_engine(_spec(server, concurrency=1)), use).startswith("echo")


# The probe: what a server does with a constraint, found out rather than believed.


def _model_that(binds: Callable[[dict[str, Any]], bool]) -> Callable[[dict[str, Any]], str]:
    """A server that keeps to the probe's JSON constraint where ``binds`` says so, and chats otherwise."""

    def respond(body: dict[str, Any]) -> str:
        schema = body.get("structured_outputs", {}).get("json") or body.get("response_format", {}).get(
            "json_schema", {}
        ).get("schema")
        if schema is None or not binds(body):
            return "The sky is blue."
        [(name, inner)] = schema["properties"].items()
        return msgspec.json.encode({name: inner.get("enum", [7])[0]}).decode()

    return respond


@pytest.mark.parametrize("field", ["structured_outputs", "response_format"])
@pytest.mark.parametrize("owner", ["vllm", "somebody"])
def test_constraints_are_said_the_way_that_binds(field: str, owner: str) -> None:
    async def use(engine: HttpEngine, model: Model) -> frozenset[str]:
        bound = await probe(engine, model, wished=["grammar"])
        await engine.ask(_request(constraint=Constraint("json", _SCHEMA)))
        return bound

    with StubServer(_model_that(lambda body: field in body), owner=owner) as server:
        assert _run(_engine(_spec(server)), use) == {"json"}
    assert field in server.bodies[-1]


@pytest.mark.parametrize(
    ("server", "tokens", "said"),
    [
        (lambda: StubServer(echo), 0, "does not keep to a constraint"),
        (lambda: StubServer(echo), 0, "teacher: {template: {enable_thinking: false}}"),
        (lambda: StubServer(lambda body: " \n" * 30), 0, "disable_any_whitespace"),
        (lambda: StubServer(_model_that(lambda _: True), context=512), 513, "context of stub is 512 tokens"),
        (
            lambda: StubServer(faults=_always(Fault("status", status=400, message="no system role"))),
            0,
            "no system role",
        ),
        (
            lambda: StubServer(
                faults=lambda body, _: (
                    Fault("status", status=400, message="too long")
                    if len(body["messages"][-1]["content"]) > 1000
                    else None
                ),
                context=None,
            ),
            1000,
            "does not take a request of 1000 tokens",
        ),
    ],
)
def test_each_failure_of_the_probe_is_one_clear_sentence(
    server: Callable[[], StubServer], tokens: int, said: str
) -> None:
    async def use(engine: HttpEngine, model: Model) -> None:
        await probe(engine, model, tokens=tokens)

    with server() as running, pytest.raises(UserError) as error:
        _run(_engine(_spec(running)), use)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_prompt_that_the_server_cuts_without_a_word_is_noticed() -> None:
    def cut(body: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 100}}

    async def use(engine: HttpEngine, model: Model) -> None:
        await probe(engine, model, tokens=2000)

    with StubServer(cut, context=None) as server, pytest.raises(UserError, match="to 100 tokens without a word"):
        _run(_engine(_spec(server)), use)


@pytest.mark.parametrize(("recipe", "fits"), [("table", False), ("align", True)])
def test_prompt_and_answer_of_a_recipe_must_fit_the_context(recipe: str, fits: bool) -> None:
    async def use(engine: HttpEngine, model: Model) -> None:
        await probe_for(load_recipe(recipe))(engine, model)

    with StubServer(_model_that(lambda _: True), context=4096) as server:
        if fits:
            _run(_engine(_spec(server)), use)
            return
        with pytest.raises(UserError, match=r"context of stub is 4096 tokens, but a request takes \d{4} and more"):
            _run(_engine(_spec(server)), use)


@pytest.mark.parametrize("args", [[], ["top_k=3"]])
def test_a_replay_needs_no_server_where_the_model_is_named(args: list[str]) -> None:
    with StubServer(models=["one"]) as server:
        spec = _spec(server, model="one", args=args)
        alive = asyncio.run(identify(spec))
    assert asyncio.run(identify(spec)) == alive._replace(context=None)
    with pytest.raises(UserError, match="no server answers"):
        asyncio.run(identify(replace(spec, model=None)))


def test_keys_in_netrc_do_not_meet_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password sk-other\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("PIPELINE_API_KEY", "sk-right")
    with StubServer(key="sk-right") as server:
        [answer] = _ask(_engine(_spec(server)), _request())
    assert answer.text.startswith("echo")


def test_a_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with StubServer() as server:
        monkeypatch.setenv("http_proxy", server.url.removeprefix("http://").removesuffix("/v1"))
        spec = parse_spec("http://no.such.host.invalid/v1")
        assert spec is not None
        [answer] = _ask(_engine(spec), _request())  # the stub takes whole addresses, as a proxy does
    assert answer.text.startswith("echo")


def test_a_key_is_hidden_before_a_message_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-" + "0123456789" * 4
    monkeypatch.setenv("PIPELINE_API_KEY", key)
    fault = Fault("status", status=400, message="x" * 490 + key)
    with StubServer(faults=_always(fault), key=key) as server, pytest.raises(RequestRefused) as error:
        _ask(_engine(_spec(server)), _request())
    assert "sk-" not in str(error.value) and "***" in str(error.value)


def test_the_builder_builds_it() -> None:
    with StubServer() as server:
        assert isinstance(build_engine(_spec(server)), HttpEngine)
