"""Tile sizes of the attention kernels: what each takes, and on a GPU which is the fastest.

    PYTHONPATH=. python benchmarks/tune.py --dims 128 --cells 5120 16384 --json tune.json

Compiles every candidate for compute capability 9.0, which needs no GPU, and prints registers, spilled bytes and shared
memory. On a GPU the candidates of a kernel then take turns, while the other kernels keep their entry of the table in
``trainer/attention/configs.py``; a candidate whose result is not that of the entry is named and not timed. What is
fastest is said, not written: the table is edited by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attention import ALLOWED, STREAMS, grid, milliseconds, tensors
from common import median, progress, report, save
from resources import resources
from triton.errors import TritonError  # type: ignore[import-untyped]

from trainer.attention import configs, launch
from trainer.attention.configs import Config, Kernel

SHARED = 227 * 1024  # bytes that a program may have on compute capability 9.0

CANDIDATES: dict[Kernel, list[Config]] = {
    "forward": [
        *(Config(128, 128, 8, stages) for stages in (2, 3)),
        *(Config(128, 64, 8, stages) for stages in (2, 3, 4)),
        *(Config(64, 128, 4, stages) for stages in (2, 3)),
        *(Config(64, 64, 4, stages) for stages in (2, 3, 4)),
    ],
    "backward_q": [
        *(Config(128, 64, 8, stages) for stages in (2, 3)),
        *(Config(64, 64, 4, stages) for stages in (2, 3)),
        *(Config(128, 32, 8, stages) for stages in (2, 3)),
        Config(64, 128, 4, 2),
        Config(128, 128, 8, 1),
    ],
    "backward_kv": [
        *(Config(64, 128, 8, stages) for stages in (1, 2, 3)),
        *(Config(64, 64, 4, stages) for stages in (1, 2, 3)),
        *(Config(32, 128, 8, stages) for stages in (2, 3)),
        *(Config(32, 64, 4, stages) for stages in (2, 3)),
    ],
}


def compiled(kernel: Kernel, dim: int) -> dict[Config, dict[str, Any]]:
    """What the candidates of a kernel take, for those that compile and fit."""
    found = {}
    for how in CANDIDATES[kernel]:
        try:
            taken = resources(kernel, how, 90, torch.bfloat16, dim)
        except (RuntimeError, TritonError) as problem:
            progress(f"  {kernel:12} D = {dim:3} {show(how)}  {str(problem).splitlines()[0][:60]}")
            continue
        progress(
            f"  {kernel:12} D = {dim:3} {show(how)}  {taken['registers']:3} registers, {taken['spilled']:4} bytes spilled, "
            f"{taken['shared'] // 1024:3} KiB shared{'' if taken['shared'] <= SHARED else ': too much'}"
        )
        if taken["shared"] <= SHARED:
            found[how] = {name: taken[name] for name in ("registers", "spilled", "shared")}
    return found


def show(how: Config) -> str:
    """A candidate in a few characters."""
    return f"{how.block_m:3} x {how.block_n:3}, {how.num_warps} warps, {how.num_stages} stages"


def timed(
    kernel: Kernel, dim: int, cells: int, heads: int, candidates: list[Config], rounds: int
) -> dict[Config, float]:
    """Milliseconds of the call that holds the kernel, forward or backward, with each candidate; medians, in turns."""
    q, k, v, d_out = (x.detach() for x in tensors(cells, heads, heads, dim, torch.bfloat16))
    index = grid(cells, STREAMS).to("cuda")
    scale = dim**-0.5
    out, lse = launch.forward(q, k, v, index, scale)

    def call() -> tuple[torch.Tensor, ...]:
        if kernel == "forward":
            return launch.forward(q, k, v, index, scale)
        return launch.backward(d_out, q, k, v, out, lse, index, scale)

    def close(got: tuple[torch.Tensor, ...]) -> bool:
        return all(bool((a - b).norm() <= ALLOWED[torch.bfloat16] * b.norm()) for a, b in zip(got, wanted, strict=True))

    entry, table = configs.LARGE[kernel][dim], configs.LARGE[kernel]
    wanted = call()
    times: dict[Config, list[float]] = {}
    try:
        for how in candidates:
            table[dim] = how
            right = _tried(call, close)
            if right is None:
                times[how] = []
            else:
                progress(f"  {kernel:12} D = {dim:3} {show(how)}  S = {cells}: {right}")
        for _ in range(rounds):
            for how, own in times.items():
                table[dim] = how
                own.append(milliseconds(call))
    finally:
        table[dim] = entry
    return {how: round(median(own), 4) for how, own in times.items()}


def _tried(
    call: Callable[[], tuple[torch.Tensor, ...]], close: Callable[[tuple[torch.Tensor, ...]], bool]
) -> str | None:
    """What is wrong with a candidate, or None."""
    try:
        return None if close(call()) else "wrong results"
    except (RuntimeError, TritonError) as problem:
        return str(problem).splitlines()[0][:60]


def main() -> None:
    """Compile, and time where there is a GPU."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="also write the results to this file")
    options.add_argument("--dims", type=int, nargs="+", default=[128], choices=configs.HEAD_DIMS)
    options.add_argument("--cells", type=int, nargs="+", default=[5_120, 16_384])
    options.add_argument("--heads", type=int, default=16)
    options.add_argument("--rounds", type=int, default=20)
    given = options.parse_args()
    gpu = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    results: dict[str, Any] = {"gpu": torch.cuda.get_device_name() if gpu else None}
    for dim in given.dims:
        for kernel in CANDIDATES:
            taken = compiled(kernel, dim)
            for cells in given.cells if gpu else ():
                times = timed(kernel, dim, cells, given.heads, list(taken), given.rounds)
                entry = times.get(configs.LARGE[kernel][dim])
                progress(f"{kernel}, D = {dim}, S = {cells}: fastest first; the table's entry takes {entry} ms")
                for how, each in sorted(times.items(), key=lambda item: item[1]):
                    progress(f"  {show(how)}  {each:8.3f} ms")
                    taken[how][f"ms, S = {cells}"] = each
            results[f"{kernel}, D = {dim}"] = {show(how): each for how, each in taken.items()}
            save("tune", results, given.json)
    if not gpu:
        progress("no GPU of compute capability 9 here: nothing was timed")
    report("tune", results, given.json)


if __name__ == "__main__":
    main()
