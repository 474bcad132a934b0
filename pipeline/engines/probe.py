"""A look at an engine before any work: does it do what the teachers rely on?

A server that takes a constraint and ignores it answers with status 200, and a model without a chat template, or with
one that refuses a system message, fails on every request. Better to hear it at once, in one sentence.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from pipeline.engines.protocol import Answer, Constraint, Engine, Message, Model, Request, RequestRefused, Sampling
from pipeline.engines.scripted import ScriptedEngine
from pipeline.errors import UserError

Kind = Literal["json", "regex", "grammar"]

_JSON: tuple[Kind, ...] = ("json",)
# No model says these of its own, and a model with random weights says nothing else under a constraint that binds.
_WORD = "quorvex"
_CONSTRAINTS: dict[Kind, Constraint] = {
    "json": Constraint(
        "json",
        {
            "type": "object",
            "properties": {_WORD: {"type": "integer", "enum": [407]}},
            "required": [_WORD],
            "additionalProperties": False,
        },
    ),
    "regex": Constraint("regex", f"{_WORD}-[0-9]{{3}}x"),
    "grammar": Constraint("grammar", f'root ::= "{_WORD}-" ("one" | "two") "!"'),
}
_QUESTION = (Message("system", "You answer in one short sentence."), Message("user", "Which colour has the sky?"))


@runtime_checkable
class _SeveralDialects(Protocol):
    def other_dialect(self) -> bool:
        """Say constraints another way from now on; False where there is none left."""
        ...


async def probe(
    engine: Engine,
    model: Model,
    *,
    required: Collection[Kind] = _JSON,
    wished: Collection[Kind] = (),
    tokens: int = 0,
    template: dict[str, Any] | None = None,
) -> frozenset[Kind]:
    """The kinds of constraint, of those required and wished, that bind.

    ``engine`` has been started and said ``model``. ``tokens``: what the longest request takes at least, prompt
    and answer.
    ``template``: arguments of the chat template that the requests will carry. A scripted engine is taken at its word.
    Raises :class:`UserError` where the engine cannot do what is required; :class:`EngineLost` where it dies meanwhile.
    """
    if isinstance(engine, ScriptedEngine):
        return frozenset((*required, *wished))
    asked = Request(_QUESTION, sampling=Sampling(max_tokens=4), template=template or {})
    try:
        await engine.ask(asked)
    except RequestRefused as refused:
        raise UserError(
            f"the model {model.name} does not take a system message followed by a user message ({refused}); "
            "use an instruction-tuned model whose chat template knows both"
        ) from refused
    await _check_context(engine, model, asked, tokens)
    binding: set[Kind] = set()
    for kind in dict.fromkeys((*required, *wished)):
        failure = await _try_constraint(engine, asked, kind)
        while failure and kind == "json" and isinstance(engine, _SeveralDialects) and engine.other_dialect():
            failure = await _try_constraint(engine, asked, kind)
        if not failure:
            binding.add(kind)
        elif kind in required:
            raise UserError(
                f"the engine does not keep to a constraint ({kind}) on the answers of {model.name}: {failure}; "
                "use one that does, such as a current vLLM; a model that thinks first needs, in the recipe, "
                "teacher: {template: {enable_thinking: false}}"
            )
    return frozenset(binding)


async def _check_context(engine: Engine, model: Model, asked: Request, tokens: int) -> None:
    if model.context is not None:
        if tokens > model.context:
            raise UserError(
                f"the context of {model.name} is {model.context} tokens, but a request takes {tokens} and more, prompt and "
                "answer; use a model or a server with a longer one (vllm: --engine-arg max_model_len=…), or let answers be "
                "shorter (--set characters=…; table: --set rows=… too)"
            )
        return
    if not tokens:
        return
    # Nobody says how long the context is: try. Two thirds of the words are certainly no more tokens than asked for.
    words = max(1, tokens * 2 // 3)
    long = (asked.messages[0], Message("user", " the" * words))
    try:
        answer = await engine.ask(msgspec.structs.replace(asked, messages=long, sampling=Sampling(max_tokens=1)))
    except RequestRefused as refused:
        raise UserError(f"{model.name} does not take a request of {tokens} tokens ({refused})") from refused
    if 0 < answer.prompt_tokens < words:
        raise UserError(
            f"the server of {model.name} cut a prompt of {words} words to {answer.prompt_tokens} tokens without a word; "
            "raise its context length"
        )


async def _try_constraint(engine: Engine, asked: Request, kind: Kind) -> str:
    """What is wrong with an answer under a constraint that no free answer satisfies; empty if nothing is."""
    sampling = Sampling(max_tokens=64)
    constrained = msgspec.structs.replace(asked, constraint=_CONSTRAINTS[kind], sampling=sampling)
    try:
        answer = await engine.ask(constrained)
    except RequestRefused as refused:
        return f"it is refused ({refused})"
    if answer.finish_reason == "stop" and _satisfies(answer, kind):
        return ""
    if answer.text.count(" ") + answer.text.count("\n") + answer.text.count("\t") > len(answer.text) // 2:
        return (
            "it wrote only whitespace, which JSON allows without end; start vLLM with --structured-outputs-config "
            '\'{"backend": "xgrammar", "disable_any_whitespace": true}\''
        )
    return f"it wrote {answer.text[:60]!r} (finish reason {answer.finish_reason})"


def _satisfies(answer: Answer, kind: Kind) -> bool:
    if kind == "json":
        try:
            return bool(msgspec.json.decode(answer.text.encode()) == {_WORD: 407})
        except (msgspec.DecodeError, UnicodeEncodeError):
            return False
    if kind == "regex":
        head, digits, tail = answer.text[:8], answer.text[8:11], answer.text[11:]
        return head == f"{_WORD}-" and digits.isdigit() and tail == "x"
    return answer.text in (f"{_WORD}-one!", f"{_WORD}-two!")
