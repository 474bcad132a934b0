"""Compile every kernel for a GPU that is not here, and print what it takes: one JSON object per line.

    PYTHONPATH=. python benchmarks/resources.py 90 bfloat16 128 [forward …]

Compute capability, type, head dim; then kernels, by default all. Not in the interpreter's process: a kernel is made for
one or the other when it is imported.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trainer.attention import kernels
from trainer.attention.configs import Config, Kernel, config

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def source(kernel: Kernel, how: Config, dtype: torch.dtype, dim: int) -> ASTSource:
    """A kernel with arguments as a launch gives them: aligned pointers, strides and sizes divisible by 16."""
    function = getattr(kernels, kernel)
    number = NAMES[dtype]
    constants = {
        "D": dim,
        "BLOCK_M": how.block_m,
        "BLOCK_N": how.block_n,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",
    }
    signature: dict[str, str] = {}
    for name in function.arg_names:
        if name in constants:
            kind = "constexpr"
        elif name in ("keys", "values"):
            kind = f"tensordesc<{number}[1,1,{how.block_n},{dim}]>"
        elif name in ("queries", "d_outs"):
            kind = f"tensordesc<{number}[1,1,{how.block_m},{dim}]>"
        elif name in ("lses", "deltas"):
            kind = f"tensordesc<fp32[1,1,{how.block_m}]>"
        elif name in ("lse", "delta"):
            kind = "*fp32"
        elif name in ("cells", "lo", "hi", "seen_lo", "seen_hi"):
            kind = "*i32"
        elif name == "scale":
            kind = "fp32"
        elif name.isupper() or re.fullmatch("[a-z]_[bhs]", name):
            kind = "i32"
        else:
            kind = f"*{number}"
        signature[name] = kind
    sixteen = [["tt.divisibility", 16]]
    attributes = {
        (place,): sixteen
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or re.fullmatch("[a-z]_[bhs]", name) or name == "S"
    }
    values = {name: value for name, value in constants.items() if name in signature}
    return ASTSource(function, signature, values, attributes)


def resources(kernel: Kernel, how: Config, capability: int, dtype: torch.dtype, dim: int) -> dict[str, Any]:
    """Registers per thread, bytes per thread that did not fit there, bytes of shared memory, wgmma, bulk copies."""
    compiled = triton.compile(
        source(kernel, how, dtype, dim),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": how.num_warps, "num_stages": how.num_stages, "enable_fp_fusion": True},
    )
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", binary], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    assembly = compiled.asm["ptx"]
    return {
        "kernel": kernel,
        "target": f"sm_{capability}",
        "type": NAMES[dtype],
        "head_dim": dim,
        "tile": [how.block_m, how.block_n],
        "warps": how.num_warps,
        "stages": how.num_stages,
        "registers": int(found[1]),
        "spilled": int(found[2]),
        "shared": compiled.metadata.shared,
        "wgmma": assembly.count("wgmma.mma_async.sync"),
        "bulk_copies": assembly.count("cp.async.bulk.tensor"),
    }


if __name__ == "__main__":
    capability, dtype, dim, *chosen = sys.argv[1:]
    kind = getattr(torch, dtype)
    for each in chosen or get_args(Kernel):
        how = config(each, int(dim), kind.itemsize, int(capability) // 10)
        print(json.dumps(resources(each, how, int(capability), kind, int(dim))), flush=True)
