"""Tile sizes of the kernels: a plain table, so that nothing is tried out at run time and every run takes the same.

BLOCK_M counts queries, BLOCK_N keys. The large tiles are for GPUs with 227 KB of shared memory per program (compute
capability 9 and 10), chosen so that ``forward`` and ``backward_q`` keep all in registers up to D = 128; the small ones
fit in 99 KB. A float32 product is made of three tf32 products (tf32x3): nearly as exact, and on the tensor cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kernel = Literal["forward", "own", "backward_q", "backward_kv"]

HEAD_DIMS = (32, 64, 128, 256)


@dataclass(frozen=True)
class Config:
    """How one kernel is cut into programs, and compiled."""

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 2


LARGE: dict[Kernel, dict[int, Config]] = {
    "forward": {
        32: Config(128, 128, 8, 3),
        64: Config(128, 128, 8, 2),
        128: Config(128, 128, 8, 2),
        256: Config(128, 64, 8, 2),
    },
    "backward_q": {
        32: Config(128, 64, 8, 3),
        64: Config(128, 64, 8, 2),
        128: Config(128, 64, 8, 2),
        256: Config(64, 64, 8, 2),
    },
    "backward_kv": {
        32: Config(64, 128, 8, 3),
        64: Config(64, 128, 8, 2),
        128: Config(64, 128, 8, 2),
        256: Config(32, 64, 8, 2),
    },
}
SMALL: dict[Kernel, dict[int, Config]] = {
    "forward": {32: Config(128, 64), 64: Config(64, 64), 128: Config(64, 32), 256: Config(32, 32)},
    "backward_q": {32: Config(64, 64), 64: Config(64, 32), 128: Config(64, 32), 256: Config(32, 32)},
    "backward_kv": {32: Config(64, 64), 64: Config(32, 64), 128: Config(32, 64), 256: Config(16, 32)},
}
FLOAT32 = {32: Config(64, 32), 64: Config(64, 32), 128: Config(32, 16, num_stages=1), 256: Config(16, 16, num_stages=1)}
OWN = {32: Config(64, 1), 64: Config(64, 1), 128: Config(32, 1), 256: Config(16, 1)}
# Several tiles of every sort even in small tests.
INTERPRETED: dict[Kernel, Config] = {
    "forward": Config(32, 16),
    "own": Config(64, 1),
    "backward_q": Config(16, 32),
    "backward_kv": Config(32, 16),
}


def config(kernel: Kernel, head_dim: int, itemsize: int, capability: int) -> Config:
    """The entry of the table.

    ``head_dim`` is one of HEAD_DIMS, ``itemsize`` the bytes of a number, ``capability`` the major compute capability
    of the GPU, 0 for the interpreter.
    """
    if capability == 0:
        return INTERPRETED[kernel]
    if kernel == "own":
        return OWN[head_dim]
    if itemsize == 4:
        return FLOAT32[head_dim]
    return (LARGE if capability in (9, 10) else SMALL)[kernel][head_dim]
