"""A whole training step on stream grids, against the same step with a dense mask, on the same conversations.

    PYTHONPATH=. python benchmarks/train_step.py --cells 5120 --json train_step_5k.json
    PYTHONPATH=. python benchmarks/train_step.py --cells 16384 --kinds sequential --json train_step_16k.json

A step is forward, loss, backward, clipping and AdamW over packs of S cells: a decoder with the shape of Qwen3-0.6B or 1.7B
and random weights, bfloat16 products, float32 weights. Contenders differ in two things alone:

    ours              mode ``skip`` at ρ = 0.1, stream attention: what the trainer does by default
    ours, same cells  mode ``keys``, stream attention: the cells of the dense path
    dense, BACKEND    mode ``keys``, torch's attention by a named backend with an additive mask [S, S] in bfloat16, built and
                      moved to the device before the clock starts (the paper's collator builds it for every batch, in float32)

All have the same chunked loss, optimiser and autocast, so what is gained by those is not counted. Conversations are drawn:
lengths as of GSM8K (log-normal; printed with the result is the share of cells that exist in mode ``skip``). A step takes the same
conversations in every contender; the last pack is only as long as it must be, as padding is below one percent in real runs.
Contenders take turns; times are device events, medians over rounds; ours is compared with the faster of the dense ones.
What is measured is written after every grid, so that a run that is ended loses only the rest. Without a GPU nothing is timed:
a tiny model is checked on the CPU, contender against contender.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import median, progress, report, save
from numpy.typing import NDArray
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, Qwen3Config
from triton.errors import TritonError  # type: ignore[import-untyped]

from trainer.attention import build_index, reference
from trainer.config import OptimizerOptions
from trainer.data.cells import Conversations, Rules, make_cells
from trainer.data.streams import ChosenStreams, Stream
from trainer.model.prepare import checkpoint_layers, compile_layers
from trainer.model.streams import StreamModel
from trainer.optimizer import make_optimizer

SHAPES = {
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "vocab_size": 151_936},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "vocab_size": 151_936},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512},
}
ASKED = {"ours, same cells": 1.8, "sequential": 3.0, "ten streams": 4.0}
Ints = NDArray[np.int64]
Spans = list[tuple[int, int, int]]  # stream, first row, length


@dataclass(frozen=True)
class Dense:
    """Attention by torch with a dense mask, under the name that ``trainer.model.attention`` asks for."""

    mask: torch.Tensor
    backend: SDPBackend

    def attend(
        self, module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        with sdpa_kernel([self.backend]):
            return scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=scale)


@dataclass(frozen=True)
class Pack:
    """What a model is called with, on its device."""

    inputs: tuple[Any, ...]
    cells: int


def drawn(kind: str, rng: np.random.Generator) -> tuple[int, Spans]:
    """One conversation: its streams and spans. Question, thoughts and answer are as long as in GSM8K."""
    question, thoughts, answer = (int(x) for x in np.exp(rng.normal(np.log([52, 95, 6]), [0.4, 0.5, 0.3])) + 1)
    if kind == "sequential":  # the answer after the question
        return 2, [(0, 0, question), (1, question + 1, thoughts + answer)]
    if kind == "wait-k":  # the answer twenty tokens behind the question
        return 2, [(0, 0, question), (1, min(20, question) + 1, thoughts + answer)]
    spans: Spans = []
    for stream in range(10):  # a third of the cells speak, in runs of 12 on average
        row = int(rng.integers(0, 36))
        while row < 300:
            length = int(rng.geometric(1 / 12))
            spans.append((stream, row, min(length, 300 - row)))
            row += length + int(rng.geometric(1 / 25))
    return 10, spans


def conversations(kind: str, count: int, vocabulary: int) -> tuple[int, Conversations]:
    """``count`` conversations as the loader decodes them, and their streams."""
    rng = np.random.default_rng(0)
    made = [drawn(kind, rng) for _ in range(count)]
    flat = [(number, *span) for number, (_, spans) in enumerate(made) for span in sorted(spans)]
    number, stream, start, length = (np.array(column, np.int64) for column in zip(*flat, strict=True))
    rows = np.zeros(count, np.int64)
    np.maximum.at(rows, number, start + length)
    hashes = np.arange(count, dtype=np.uint64)
    tokens = rng.integers(1, vocabulary, int(length.sum())).astype(np.int32)
    return made[0][0], Conversations(rows, np.zeros(count, bool), hashes, number, stream, start, length, tokens)


def packs(
    kind: str, count: int, size: int, vocabulary: int, mode: str, device: str, backend: SDPBackend | None
) -> list[Pack]:
    """The cells of the conversations in one mode, cut into packs, with what attention wants."""
    streams, given = conversations(kind, count, vocabulary)
    chosen = ChosenStreams(
        tuple(Stream(str(n), "output" if n else "input", float(n > 0), 1.0) for n in range(streams)),
        tuple(range(streams)), streams, (), 0, None,
    )  # fmt: skip
    cells = make_cells(given, Rules(chosen, mode, rate=0.1), seed=0, epoch=0)  # type: ignore[arg-type]
    made: list[Pack] = []
    ends = np.cumsum(cells.lengths)
    first = begin = 0
    while first < count:
        last = max(first + 1, int(np.searchsorted(ends, begin + size, side="right")))
        own = slice(begin, int(ends[last - 1]))
        docs = np.repeat(np.arange(last - first), cells.lengths[first:last])
        silent = cells.silent[own] if mode == "skip" else None
        index = build_index(cells.positions[own], cells.streams[own], docs, silent).to(device)
        attention: Any = index
        if backend is not None:
            seen = reference.dense_mask(index)
            kind_ = torch.bfloat16 if device == "cuda" else torch.float32
            mask = torch.zeros(seen.shape, dtype=kind_, device=device).masked_fill_(~seen, float("-inf"))
            attention = Dense(mask[None, None], backend)
        trained = np.flatnonzero(cells.kinds[own])
        columns = (cells.ids[own], cells.streams[own], cells.positions[own])
        ids, stream, position = (torch.as_tensor(x).to(device, torch.long) for x in columns)
        rest = (trained, cells.targets[own][trained])
        where, target = (torch.as_tensor(x).to(device, torch.long) for x in rest)
        weight = torch.as_tensor(cells.weights[own][trained]).to(device)
        made.append(Pack((ids, stream, position, attention, where, target, weight), len(docs)))
        first, begin = last, int(ends[last - 1])
    return made


class Step:
    """A model with its optimiser; one for all contenders, so that none has other weights."""

    def __init__(self, shape: str, device: str, checkpointing: bool, compiled: bool) -> None:
        heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
        if shape == "tiny":
            heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
        config = Qwen3Config(
            **SHAPES[shape], **heads, tie_word_embeddings=True, max_position_embeddings=40_960,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(device):
            self.model = StreamModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32), 10)
        self.model.to(device).train()
        if checkpointing:
            checkpoint_layers(self.model.backbone)
        if compiled:
            compile_layers(self.model.backbone)
        # A rate of nought: the work of a step, and every step from the same weights.
        rates = OptimizerOptions(learning_rate=0.0, stream_learning_rate=0.0)
        self.optimizer = make_optimizer(self.model, rates)
        self.device = device

    def __call__(self, given: list[Pack]) -> torch.Tensor:
        """One step; its mean loss."""
        total = sum(pack.inputs[-1].sum() for pack in given)
        loss = torch.zeros((), device=self.device)
        for pack in given:
            with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
                part, _ = self.model(*pack.inputs)
            (part / total).backward()
            loss += part.detach() / total
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss


def seconds(call: Callable[[], object]) -> float:
    """Device time of a call."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def measure(kind: str, size: int, given: argparse.Namespace, step: Step, vocabulary: int) -> dict[str, Any]:
    """All contenders on the same conversations, checked against each other; timed where there is a GPU."""
    device = step.device
    streams, some = conversations(kind, 200, vocabulary)
    mean = float((some.num_rows + 1).mean()) * streams
    count = max(1, int(max(size, given.positions) / mean))
    contenders: dict[str, tuple[str, SDPBackend | None]] = {"ours": ("skip", None), "ours, same cells": ("keys", None)}
    if device == "cuda":
        contenders["dense, memory-efficient"] = ("keys", SDPBackend.EFFICIENT_ATTENTION)
        contenders["dense, cuDNN"] = ("keys", SDPBackend.CUDNN_ATTENTION)
    else:
        contenders["dense, math"] = ("keys", SDPBackend.MATH)
    ready: dict[str, list[Pack]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, (mode, backend) in contenders.items():
        progress(f"{kind}, S = {size}: {name}")
        try:
            made = packs(kind, count, size, vocabulary, mode, device, backend)
            found[name] = {"cells": sum(pack.cells for pack in made), "packs": len(made), "loss": float(step(made))}
            ready[name] = made
        except (RuntimeError, TritonError) as problem:
            found[name] = {"failed": str(problem).splitlines()[0]}
            step.optimizer.zero_grad(set_to_none=True)
    same = [found[name]["loss"] for name in ready if name != "ours"]
    if same and max(same) - min(same) > 5e-3 * max(same):
        raise SystemExit(f"{kind}: contenders with the same cells have other losses: {found}")
    _, given_ = conversations(kind, count, vocabulary)
    cells = int(given_.num_rows.sum()) * streams
    result: dict[str, Any] = {"conversations": count, "contenders": found}
    result["share_of_cells_that_speak"] = round(int(given_.length.sum()) / cells, 3)
    if "ours" in ready:
        result["share_of_cells_in_skip"] = round(found["ours"]["cells"] / (cells + streams * count), 3)
    if device != "cuda":
        return result
    times: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(given.rounds + 2):
        for name, made in ready.items():
            took = seconds(lambda made=made: step(made))
            if turn >= 2:  # the first ones warm up
                times[name].append(took)
    for name, taken in times.items():
        torch.cuda.reset_peak_memory_stats()
        step(ready[name])
        found[name] |= {
            "seconds": round(median(taken), 4),
            "spread": round((max(taken) - min(taken)) / median(taken), 3),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        }
    dense = {name: each["seconds"] for name, each in found.items() if name.startswith("dense") and name in times}
    if dense:
        fastest = min(dense, key=lambda name: dense[name])
        ratios = {
            name: round(dense[fastest] / found[name]["seconds"], 2)
            for name in ("ours", "ours, same cells")
            if name in times
        }
        asked = {"ours": ASKED.get(kind), "ours, same cells": ASKED["ours, same cells"]}
        result["against"] = fastest
        result["times_faster"] = {name: {"asked": asked[name], "is": ratio} for name, ratio in ratios.items()}
    return result


def main() -> None:
    """Measure and report."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="also write the results to this file")
    options.add_argument("--shape", choices=["0.6b", "1.7b"], default="0.6b")
    options.add_argument("--cells", type=int, nargs="+", default=[5_120, 16_384])
    options.add_argument("--kinds", nargs="+", default=["sequential", "ten streams", "wait-k"])
    options.add_argument("--positions", type=int, default=20_480, help="of a step in mode keys; at least one pack")
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--checkpointing", action="store_true")
    options.add_argument("--compile", action="store_true", help="compile the layers, in all contenders")
    given = options.parse_args()
    gpu = torch.cuda.is_available()
    shape, sizes = (given.shape, given.cells) if gpu else ("tiny", [640])
    if not gpu:
        given.positions = 4 * sizes[0]
        progress("no GPU here: nothing is timed; a tiny model is checked on the CPU")
    step = Step(shape, "cuda" if gpu else "cpu", given.checkpointing, given.compile)
    results: dict[str, Any] = {
        "gpu": None,
        "shape": shape,
        "checkpointing": given.checkpointing,
        "compile": given.compile,
        "software": {"torch": torch.__version__.split("+")[0]},
    }
    if gpu:
        results["gpu"] = {"name": torch.cuda.get_device_name(), "cudnn": torch.backends.cudnn.version()}
        results["rounds"] = given.rounds
    for size in sizes:
        for kind in given.kinds:
            results[f"{kind}, S = {size}"] = found = measure(kind, size, given, step, SHAPES[shape]["vocab_size"])
            for name, what in found["contenders"].items():
                progress(
                    f"  {name:26} {what.get('cells', ''):>9} cells  {what.get('seconds', what.get('failed', '')):>9}"
                )
            save("train_step", results, given.json)
    report("train_step", results, given.json)


if __name__ == "__main__":
    main()
