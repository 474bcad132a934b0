"""An engine in this process: vLLM's asynchronous one, with the model that ``--model`` names.

vLLM computes in processes of its own. Where one of them dies or nothing comes out of them any more, all that is left
of them is killed, every request in flight raises :class:`EngineLost`, and ``start`` builds a new engine. On a machine
without a GPU the CPU build of vLLM does the same, slower.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from pipeline.engines.local_model import model_of
from pipeline.engines.parent import WATCH
from pipeline.engines.protocol import Answer, EngineLost, Model, Request, RequestRefused
from pipeline.engines.spec import GET_VLLM, EngineSpec
from pipeline.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    import psutil
    from vllm.v1.engine.async_llm import AsyncLLM

#: Environment that vLLM reads as it is imported; what the user has set stands.
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",  # of its processes, about its own code
    # a fork would take over locks that other threads of this process hold just then
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
    WATCH: "1",
}
#: Unless an engine argument says otherwise.
_DEFAULTS: dict[str, Any] = {
    "enable_prefix_caching": True,
    "disable_log_stats": True,
    "use_tqdm_on_load": False,
}
#: JSON grammars allow endless whitespace by default, and a model that falls into it never comes out. vLLM takes the
#: flag only where the backend is named.
_STRUCTURED = {"backend": "xgrammar", "disable_any_whitespace": True}
_WATCH_SECONDS = 1.0
_LOOK_SECONDS = 0.2
#: An answer gives a sign of life after its first token, then after so many. Fewer would cost the event loop.
_SIGN_TOKENS = 64
#: Before an engine that could not be started is started once more.
_PAUSE_SECONDS = 5.0
_GIB = 1 << 30


class VllmEngine:
    """Holds one vLLM engine at a time. Made by :func:`pipeline.engines.build.build_engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        """Check the arguments; nothing is loaded yet. Raises :class:`UserError`."""
        self._spec = spec
        self._arguments = _check_arguments(spec)
        self._named = model_of(spec)
        self._room = asyncio.Semaphore(spec.concurrency)
        self._changing = asyncio.Lock()
        self._running: _Running | None = None
        self._model: Model | None = None

    #: An engine that does not answer is lost, and that is said where it is noticed.
    trouble = ""

    async def start(self) -> Model:
        """Load the model, unless there is an engine that lives."""
        async with self._changing:
            if self._running is not None:
                if not self._running.lost:
                    return self._running.model
                await self._end()
            try:
                engine = await _build_at_last(self._arguments)
            except Exception as error:
                said = " ".join(str(error).split())[:1000] or type(error).__name__
                if self._model is not None:
                    raise EngineLost(f"a new engine cannot be started: {said}") from error
                raise UserError(
                    f"--engine vllm: {self._spec.model} cannot be loaded: {said} (if it is memory: --engine-arg "
                    "max_model_len=…, gpu_memory_utilization=…, quantization=… or tensor_parallel_size=…)"
                ) from error
            self._model = self._named._replace(context=engine.model_config.max_model_len)
            self._running = _Running(engine, self._model, self._spec.timeout)
            return self._model

    async def ask(self, request: Request) -> Answer:
        """One answer. See :class:`pipeline.engines.protocol.Engine`."""
        async with self._room:
            if self._running is None:
                raise EngineLost("the engine is not started")
            return await self._running.ask(request)

    async def close(self) -> None:
        """End the engine and every process of it."""
        async with self._changing:
            await self._end()

    async def forget_prefixes(self) -> None:
        """Empty the prefix cache, so that what comes next is measured alone."""
        if self._running is not None:
            await self._running.forget_prefixes()

    @property
    def processes(self) -> list[int]:
        """The processes that compute, by number: for whoever wants to see or to disturb them."""
        return [process.pid for process in self._running.processes] if self._running else []

    async def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await running.end()


class _Running:
    """One engine of vLLM, from its start to its end."""

    def __init__(self, engine: AsyncLLM, model: Model, timeout: float) -> None:
        self.model = model
        #: Why there will be no more answers; empty as long as there will.
        self.lost = ""
        self.processes = _find_processes(engine)
        self._engine: AsyncLLM | None = engine
        self._timeout = timeout
        self._numbers = itertools.count()
        self._asks: dict[asyncio.Task[Answer], float] = {}
        self._last_sign = time.monotonic()
        self._watch = asyncio.create_task(self._watch_over())

    async def ask(self, request: Request) -> Answer:
        if self.lost:
            raise EngineLost(self.lost)
        task = asyncio.create_task(self._answer(request))
        self._asks[task] = time.monotonic()
        try:
            return await task
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if self.lost and not (me is not None and me.cancelling()):
                raise EngineLost(self.lost) from None
            raise
        finally:
            del self._asks[task]

    async def forget_prefixes(self) -> None:
        if self._engine is not None:
            await self._engine.reset_prefix_cache()

    async def end(self) -> None:
        """Whatever happens: afterwards no process of this engine is left."""
        import psutil

        self._watch.cancel()
        engine, self._engine = self._engine, None
        if not self.lost:
            self.lost = "the engine is closed"
            self._cancel()
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)
        del engine
        gc.collect()  # vLLM's objects refer to each other in circles, and hold sockets
        self._kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, self.processes, 30)
        if alive:
            raise EngineLost(f"processes {[process.pid for process in alive]} of the old engine cannot be killed")

    def _lose(self, why: str) -> None:
        """No more answers: kill what computes them, and tell all who wait."""
        self.lost = self.lost or why
        self._kill()
        self._cancel()

    def _kill(self) -> None:
        import psutil

        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _cancel(self) -> None:
        for task in list(self._asks):
            task.cancel()

    async def _watch_over(self) -> None:
        """Notice an engine that has died, or that gives no sign of life for as long as a request may take."""
        while not self.lost:
            await asyncio.sleep(_WATCH_SECONDS)
            if self._engine is None or self._engine.errored:
                self._lose("the engine's process has died")
            elif self._asks:
                silent = time.monotonic() - max(self._last_sign, min(self._asks.values()))
                if silent > self._timeout:
                    self._lose(f"the engine has given no sign of life for {silent:.0f} s")

    async def _answer(self, request: Request) -> Answer:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        engine = self._engine
        if engine is None:
            raise EngineLost(self.lost)
        try:
            return await self._generate(engine, request)
        except EngineDeadError as error:
            self._lose("the engine's process has died")
            raise EngineLost(self.lost) from error
        except (VLLMClientError, ValueError) as error:
            raise RequestRefused(" ".join(str(error).split())) from error
        except EngineGenerateError as error:
            cause = error.__cause__ or error
            if isinstance(cause, ValueError):
                raise RequestRefused(" ".join(str(cause).split())) from error
            self._lose(f"the engine has failed: {cause!r}")
            raise EngineLost(self.lost) from error

    async def _generate(self, engine: AsyncLLM, request: Request) -> Answer:
        from vllm.inputs import tokens_input

        tokens = list(request.tokens) or await _render(engine, request)
        context, most = self.model.context, request.sampling.max_tokens
        if context is not None and len(tokens) + most > context:
            raise RequestRefused(
                f"{len(tokens)} tokens of prompt and up to {most} of answer are more than the context of {context}"
            )
        final = None
        async for output in engine.generate(tokens_input(tokens), _sampling(request), f"ask-{next(self._numbers)}"):
            final, self._last_sign = output, time.monotonic()
        if final is None or not final.outputs:
            raise EngineLost("the engine has ended a request without an answer")
        said = final.outputs[0]
        return Answer(
            said.text,
            str(said.finish_reason or "unknown"),
            prompt_tokens=len(tokens),
            output_tokens=len(said.token_ids),
            cached_tokens=final.num_cached_tokens or 0,
        )


async def _render(engine: AsyncLLM, request: Request) -> list[int]:
    """The token ids of a chat, made by the engine's own renderer: the same as ``vllm serve`` makes."""
    from vllm.renderers import ChatParams

    chat: Any = [{"role": message.role, "content": message.content} for message in request.messages]
    template = {"add_generation_prompt": True, **request.template}
    _, [prompt] = await engine.renderer.render_chat_async([chat], ChatParams(chat_template_kwargs=template))
    return list(prompt["prompt_token_ids"])


def _sampling(request: Request) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    asked, constraint = request.sampling, request.constraint
    structured = None if constraint is None else StructuredOutputsParams(**{constraint.kind: constraint.value})
    return SamplingParams(
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=asked.max_tokens,
        seed=asked.seed,
        structured_outputs=structured,
        output_kind=RequestOutputKind.CUMULATIVE,
        stream_interval=_SIGN_TOKENS,
    )


def _check_arguments(spec: EngineSpec) -> dict[str, Any]:
    """The arguments of vLLM's engine: the user's over our defaults."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # until vLLM sets up its logging, which is later than its first words
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
    except ImportError as error:
        raise UserError(f"--engine vllm: vllm is not installed here, or not whole ({error}); {GET_VLLM}") from error
    known = set(AsyncEngineArgs.__dataclass_fields__)
    given = dict(spec.args)
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "vLLM's documentation lists what there is"
            raise UserError(f"--engine-arg {name}: vllm has no such engine argument; {hint}")
    arguments = _DEFAULTS | (_cpu_defaults() if current_platform.is_cpu() else {})
    if spec.gpus > 1:
        # inside Ray vLLM would start further actors of its own for this; the GPUs are already here
        arguments["distributed_executor_backend"] = "mp"
    structured = given.pop("structured_outputs_config", None) or {}
    return {
        **arguments,
        "model": spec.model,
        **given,
        "structured_outputs_config": _STRUCTURED | structured,
    }


def _cpu_defaults() -> dict[str, Any]:
    import psutil

    defaults: dict[str, Any] = {
        "enforce_eager": True,  # compiling needs a C++ compiler and minutes
        "block_size": 32,  # whole blocks are cached: of 128 tokens, as is usual there, prompts that grow lose much
        # A prompt that is read in pieces takes back what its seeded generator drew meanwhile, which those of a CPU
        # cannot: vLLM 0.32 dies of it.
        "enable_chunked_prefill": False,
    }
    if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        # vLLM would take most of the memory, which here is not the engine's own
        defaults["kv_cache_memory_bytes"] = min(8, max(1, psutil.virtual_memory().total // _GIB // 10)) * _GIB
    return defaults


async def _build_at_last(arguments: dict[str, Any]) -> AsyncLLM:
    """Build an engine, at the second try where the first met something that may have passed by then.

    That is: a port that another took first, a GPU whose memory an engine before has not given back yet.
    """
    try:
        return await _build(arguments)
    except Exception as error:  # of any kind: the processes of an engine say why in their own way
        if not _may_pass(error):
            raise
        said = " ".join(str(error).split())[:300]
        logging.getLogger(__name__).warning("the engine could not be started (%s); trying once more", said)
    gc.collect()
    await asyncio.sleep(_PAUSE_SECONDS)
    return await _build(arguments)


def _may_pass(error: Exception) -> bool:
    """Whether it is not the configuration, which stays wrong: that is a ValueError, or an OSError without a number."""
    return isinstance(error, RuntimeError) or getattr(error, "errno", None) is not None


async def _build(arguments: dict[str, Any]) -> AsyncLLM:
    """Build an engine beside the event loop; takes seconds to minutes."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    ended = threading.Event()

    def build() -> AsyncLLM:
        try:
            with _deaf_to_the_keyboard():
                return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        finally:
            ended.set()

    before = {process.pid for process in _children()}
    building = asyncio.ensure_future(asyncio.to_thread(build))
    try:
        return await asyncio.shield(building)
    except asyncio.CancelledError:
        building.add_done_callback(_give_up)
        threading.Thread(target=_kill_new, args=(before, ended), name="give-up-engine", daemon=True).start()
        raise


def _give_up(built: asyncio.Future[AsyncLLM]) -> None:
    """End an engine that nobody waits for any more, if there is one."""
    if not built.cancelled() and built.exception() is None:
        built.result().shutdown(0.0)


def _kill_new(before: Container[int], ended: threading.Event) -> None:
    """Kill what an engine that is being built has started: whoever builds it waits for these processes, for minutes."""
    import psutil

    while not ended.wait(_LOOK_SECONDS):
        for process in _children():
            with suppress(psutil.Error):
                if process.pid not in before and _is_of_an_engine(process):
                    process.kill()


def _children() -> list[psutil.Process]:
    import psutil

    return psutil.Process().children(recursive=True)


def _is_of_an_engine(process: psutil.Process) -> bool:
    """Until it has given itself a name, a process of vLLM is one that Python has spawned."""
    said = " ".join(process.cmdline())
    return said.startswith("VLLM::") or "multiprocessing.spawn" in said


@contextmanager
def _deaf_to_the_keyboard() -> Iterator[None]:
    """Processes that this thread starts do not get the Ctrl-C of a terminal, which goes to all of a group.

    They end when this process ends them; of a Ctrl-C of their own they would die at once, in many words.
    """
    resource_tracker.ensure_running()  # where it has yet to be started with the first process, it takes the mask off
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _find_processes(engine: AsyncLLM) -> list[psutil.Process]:
    """The processes on this machine that compute for an engine, with those that they have started."""
    import psutil

    manager = engine.engine_core.resources.engine_manager
    found: list[psutil.Process] = []
    for process in getattr(manager, "processes", []):
        try:
            core = psutil.Process(process.pid)
            found += [core, *core.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found
