"""Stream attention against what one would use otherwise: speed, memory, and first of all whether it is right.

    PYTHONPATH=. python benchmarks/attention.py --json attention.json

On a GPU: our kernels on a grid of ten streams and of one; cuDNN with a causal mask (that is another, easier question:
the limit beside ours); FlexAttention, compiled with max-autotune, its block mask built compiled and beforehand; the
memory-efficient backend and cuDNN with a dense additive mask in the type of the queries, built beforehand. All have
the same heads; where there are fewer key heads, the baselines get keys repeated beforehand, outside the time.

Contenders take turns, every round all of them. Times are device events around the calls, in a queue that is kept filled
(a wait before them hides what Python takes to launch), medians over rounds; compaction of keys is inside. TFLOP/s count
the pairs that the mask lets see: 4 D per pair and head forward, 10 D backward. A contender whose results are wrong or
that fails is named and not timed. Without a GPU only the index is measured.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import median, progress, report, save
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from triton.errors import TritonError  # type: ignore[import-untyped]

from trainer.attention import Index, build_index, reference, stream_attention

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Times = dict[str, dict[str, float]]
STREAMS = 10
DIM = 128
SPEECH = 0.29  # share of cells that say something, in the runs with silence
RATE = 0.1  # share of silent cells that are kept, where positions are skipped
ALLOWED = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}  # of the norm, against float32 or better


@dataclass(frozen=True)
class Contender:
    """A way to attend, the tensors it is given, and what it is compared with."""

    attend: Attend
    given: tuple[torch.Tensor, ...]  # q, k, v, gradient of the output
    index: Index  # what it should compute


def grid(cells: int, streams: int, silent: np.ndarray[Any, Any] | None = None) -> Index:
    """One conversation on a full grid."""
    rows, stream = np.divmod(np.arange(cells, dtype=np.int32), np.int32(streams))
    return build_index(rows, stream, np.zeros(cells, np.int32), silent)


def skipped(cells: int) -> Index:
    """The same grid as cells that exist: those that speak, and some silent ones."""
    rng = np.random.default_rng(0)
    speaks = rng.random(cells) < SPEECH
    exists = np.flatnonzero(speaks | (rng.random(cells) < RATE))
    rows, stream = np.divmod(exists.astype(np.int32), np.int32(STREAMS))
    return build_index(rows, stream, np.zeros(exists.size, np.int32), ~speaks[exists])


def pairs(index: Index) -> int:
    """How many pairs of cells attend."""
    return int((index.hi - index.lo).sum(dtype=torch.int64)) + len(index)


def tensors(cells: int, heads: int, key_heads: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """q, k, v and the gradient of the output, [1, H or Hk, S, D]."""
    made = [torch.randn(1, n, cells, dim, device="cuda").to(dtype) for n in (heads, key_heads, key_heads, heads)]
    return *(x.requires_grad_() for x in made[:3]), made[3]


def both(attend: Attend, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Output and gradients."""
    q, k, v, d_out = given
    out = attend(q, k, v)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), d_out)


def error(attend: Attend, given: tuple[torch.Tensor, ...], index: Index) -> float:
    """The largest relative error, in norm, of output and gradients of the first key heads; NaN stays NaN."""
    q, k, v, d_out = given
    group = q.shape[1] // k.shape[1]
    few = 1 if len(index) > 8192 else 2  # what the reference has memory for
    got = both(attend, given)
    with torch.no_grad():
        scale = q.shape[-1] ** -0.5
        parts = [x[:, : few * (group if x.shape[1] == q.shape[1] else 1)].float() for x in (q, k, v, d_out)]
        out, lse = reference.forward(*parts[:3], index, scale)
        wanted = out, *reference.backward(parts[3], *parts[:3], out, lse, index, scale)
        errors = [(a[:, : b.shape[1]].float() - b).norm() / b.norm() for a, b in zip(got, wanted, strict=True)]
    return max((float(x) for x in errors), key=lambda x: (x != x, x))


def check() -> list[dict[str, Any]]:
    """Our kernels on every type and head dim: packed conversations, padding, silence, classes, grouped queries.

    Raises SystemExit where an error is too large, or two runs differ in a bit.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    found = []
    cells = 1500
    rng = np.random.default_rng(0)
    rows, stream = np.divmod(np.arange(cells) % 700, STREAMS)
    docs = np.where(np.arange(cells) < 1400, np.arange(cells) // 700, -1)
    for classes, visibility in {"one": None, "ten": np.tri(STREAMS, dtype=bool)}.items():
        for silent in (None, rng.random(cells) < 0.5):
            index = build_index(rows, stream, docs, silent, visibility).to("cuda")
            for dtype in ALLOWED:
                for dim in (32, 64, 80, 128, 256):
                    given = tensors(cells, 4, 2, dim, dtype)
                    attend = functools.partial(stream_attention, index=index)
                    worst = error(attend, given, index)
                    same = all(torch.equal(a, b) for a, b in zip(both(attend, given), both(attend, given), strict=True))
                    what = f"{dtype}, D = {dim}, {classes} class(es), silence {silent is not None}"
                    if not worst < ALLOWED[dtype] or not same:
                        raise SystemExit(f"wrong: {what}: error {worst:.1e}, two runs equal: {same}")
                    found.append({"case": what, "error": worst})
    return found


def dense_mask(index: Index, dtype: torch.dtype) -> torch.Tensor:
    """An additive mask [1, 1, S, S] in the type of the queries; another type is misread by some versions of cuDNN."""
    mask = reference.dense_mask(index)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))[None, None]


def sdpa(backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> torch.Tensor:
    """torch's attention by a named backend, and no other."""
    with sdpa_kernel([backend]):
        return scaled_dot_product_attention(q, k, v, **how)


def flex(cells: int) -> Attend:
    """FlexAttention on a full grid: compiled, and with its block mask ready."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    row = torch.arange(cells, device="cuda") // STREAMS

    def sees(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (row[j] < row[i]) | (i == j)

    block_mask = torch.compile(create_block_mask)(sees, None, None, cells, cells, device="cuda")
    compiled = torch.compile(flex_attention, mode="max-autotune-no-cudagraphs", dynamic=False)
    return functools.partial(compiled, block_mask=block_mask)


def contenders(cells: int, heads: int, key_heads: int) -> Iterator[tuple[str, Callable[[], Contender]]]:
    """Name, and how to make it: making one may fail, too."""
    dtype = torch.bfloat16
    given = tensors(cells, heads, key_heads, DIM, dtype)
    group = heads // key_heads
    q, k, v, d_out = given
    k, v = (x.detach().repeat_interleave(group, 1).requires_grad_() for x in (k, v))
    repeated = (q, k, v, d_out) if group > 1 else given
    full, causal = grid(cells, STREAMS).to("cuda"), grid(cells, 1).to("cuda")
    silent = np.random.default_rng(0).random(cells) >= SPEECH

    def ours(index: Index) -> Contender:
        index = index.to("cuda")
        size = len(index)
        mine = given if size == cells else tensors(size, heads, key_heads, DIM, dtype)
        return Contender(functools.partial(stream_attention, index=index), mine, index)

    def torchs(backend: SDPBackend, index: Index, **how: Any) -> Contender:
        return Contender(functools.partial(sdpa, backend, **how), repeated, index)

    efficient, cudnn = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION
    yield "ours, 10 streams", lambda: ours(full)
    yield "ours, 1 stream", lambda: ours(causal)
    yield "ours, silent keys compacted", lambda: ours(grid(cells, STREAMS, silent))
    yield "ours, silent positions skipped", lambda: ours(skipped(cells))
    yield "cuDNN, causal", lambda: torchs(cudnn, causal, is_causal=True)
    yield "FlexAttention", lambda: Contender(flex(cells), repeated, full)
    yield "memory-efficient, dense mask", lambda: torchs(efficient, full, attn_mask=dense_mask(full, dtype))
    yield "cuDNN, dense mask", lambda: torchs(cudnn, full, attn_mask=dense_mask(full, dtype))


def milliseconds(call: Callable[[], object]) -> float:
    """Device time of one call in a filled queue."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(6_000_000)  # cycles: some 3 ms, in which Python launches
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def extra_memory(call: Callable[[], object]) -> int:
    """Bytes that a call takes at its peak, results included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(cells: int, heads: int, key_heads: int, rounds: int) -> dict[str, Any]:
    """All contenders at one length, right ones timed in turns."""
    ready: dict[str, Contender] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, make in contenders(cells, heads, key_heads):
        progress(f"S = {cells}: {name}")
        try:
            made = make()
            worst = error(made.attend, made.given, made.index)
        except (RuntimeError, TritonError) as problem:
            found[name] = {"failed": str(problem).splitlines()[0]}
            continue
        found[name] = {"error": worst}
        if worst < ALLOWED[torch.bfloat16]:
            ready[name] = made
        else:
            found[name]["failed"] = "wrong results"
    forward: dict[str, list[float]] = {name: [] for name in ready}
    total: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(rounds + 3):
        for name, made in ready.items():
            with torch.no_grad():
                first = milliseconds(functools.partial(made.attend, *made.given[:3]))
            second = milliseconds(functools.partial(both, made.attend, made.given))
            if turn >= 3:  # the first ones warm up
                forward[name].append(first)
                total[name].append(second)
    for name, made in ready.items():
        work = 4e-9 * heads * DIM * pairs(made.index)  # GFLOP forward; as many per millisecond are TFLOP/s
        one, two = median(forward[name]), median(total[name])
        found[name] |= {
            "forward_ms": round(one, 4),
            "forward_and_backward_ms": round(two, 4),
            "forward_spread": round((max(forward[name]) - min(forward[name])) / one, 3),
            "forward_tflops": round(work / one),
            "forward_and_backward_tflops": round(3.5 * work / two),
            "extra_bytes": extra_memory(functools.partial(both, made.attend, made.given)),
        }
    return found


def asked(found: dict[str, dict[str, Any]], cells: int) -> dict[str, dict[str, float]]:
    """What the kernels must reach, and what they did, for those that were measured."""

    def ratio(what: str, above: str, below: str) -> float | None:
        if what in found[above] and what in found[below]:
            return round(found[above][what] / found[below][what], 3)
        return None

    ours, both_ways, forward = "ours, 10 streams", "forward_and_backward_ms", "forward_ms"
    near = cells < 10_000
    table = {
        "speed of cuDNN causal, forward, at least": (0.70, ratio(forward, "cuDNN, causal", ours)),
        "speed of FlexAttention, at least": (1.1 if near else 1.0, ratio(both_ways, "FlexAttention", ours)),
        "speed of memory-efficient, at least": (
            5.0 if near else 8.0,
            ratio(both_ways, "memory-efficient, dense mask", ours),
        ),
        "speed of cuDNN with a dense mask, at least": (1.5, ratio(both_ways, "cuDNN, dense mask", ours)),
        "10 streams against 1, at most": (1.03, ratio(both_ways, ours, "ours, 1 stream")),
        "keys compacted, at most": (0.45, ratio(both_ways, "ours, silent keys compacted", ours)),
        "positions skipped, at most": (0.20, ratio(both_ways, "ours, silent positions skipped", ours)),
        "extra memory of cuDNN causal, at most": (1.05, ratio("extra_bytes", ours, "cuDNN, causal")),
    }
    return {name: {"asked": limit, "got": got} for name, (limit, got) in table.items() if got is not None}


def show(found: dict[str, dict[str, Any]], targets: dict[str, dict[str, float]], cells: int) -> None:
    """One length as a table."""
    progress(f"\nS = {cells}{'':28}forward ms  TFLOP/s   both ms  TFLOP/s    error")
    for name, each in found.items():
        if "failed" in each:
            progress(f"  {name:34} {each['failed'][:60]}")
        else:
            progress(
                f"  {name:34} {each['forward_ms']:10.3f} {each['forward_tflops']:8} "
                f"{each['forward_and_backward_ms']:9.3f} {each['forward_and_backward_tflops']:8} {each['error']:8.1e}"
            )
    for name, each in targets.items():
        progress(f"  {name:45} {each['asked']:6.2f}   {each['got']:6.2f}")


def index_speed(rounds: int) -> dict[str, float]:
    """Million cells per second and core that build_index takes."""
    found = {}
    rng = np.random.default_rng(0)
    for cells in (5_120, 16_384, 1_000_000):
        rows, stream = np.divmod(np.arange(cells, dtype=np.int32) % 4_000, np.int32(STREAMS))
        docs = np.arange(cells, dtype=np.int32) // 4_000
        silent = rng.random(cells) >= SPEECH
        for name, how in {
            "one class": {},
            "one class, silence": {"silent": silent},
            "ten classes": {"visibility": np.tri(STREAMS, dtype=bool)},
        }.items():
            times = []
            for _ in range(rounds):
                started = time.perf_counter()
                build_index(rows, stream, docs, **how)
                times.append(time.perf_counter() - started)
            found[f"{name}, S = {cells}"] = round(cells / median(times) / 1e6, 1)
            progress(f"  index: {name:20} S = {cells:8} {found[f'{name}, S = {cells}']:7.1f} million cells/s")
    return found


def main() -> None:
    """Check, measure and report."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="also write the results to this file")
    options.add_argument("--cells", type=int, nargs="+", default=[5_120, 16_384])
    options.add_argument("--heads", type=int, default=16)
    options.add_argument("--key-heads", type=int, default=16)
    options.add_argument("--rounds", type=int, default=25)
    given = options.parse_args()
    results: dict[str, Any] = {"index_million_cells_per_s": index_speed(given.rounds)}
    if not torch.cuda.is_available():
        progress("no GPU here: the kernels were neither checked nor timed")
        results["gpu"] = None
    else:
        import triton

        results["gpu"] = {
            "name": torch.cuda.get_device_name(),
            "torch": torch.__version__.split("+")[0],
            "triton": triton.__version__,
            "cudnn": torch.backends.cudnn.version(),
            "shape": f"B = 1, H = {given.heads}, Hk = {given.key_heads}, D = {DIM}, bfloat16",
            "rounds": given.rounds,
        }
        progress("checking")
        results["checks"] = check()
        for cells in given.cells:
            found = measure(cells, given.heads, given.key_heads, given.rounds)
            targets = asked(found, cells)
            show(found, targets, cells)
            results[f"S = {cells}"] = {"contenders": found, "targets": targets}
            save("attention", results, given.json)
            torch.cuda.empty_cache()
            torch._dynamo.reset()  # FlexAttention is compiled for every length: past a limit it would not be
    report("attention", results, given.json)


if __name__ == "__main__":
    main()
