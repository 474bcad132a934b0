"""The kernels compile ahead of time for GPUs that are not here, fit, and keep their loops in registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # bytes a program may have, by compute capability


def resources(capability: int, dtype: str, dim: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What every kernel takes, by kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(root / "benchmarks" / "resources.py"), str(capability), dtype, str(dim)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {each["kernel"]: each for each in found}


def test_sm_90_spills_nothing_and_uses_its_own_instructions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = resources(90, "bfloat16", 128, tmp_path)
    with capsys.disabled():
        for kernel, each in found.items():
            print(
                f"\n{kernel}, sm_90, bfloat16, D = 128: {each['registers']} registers, {each['spilled']} bytes spilled, "
                f"{each['shared']} bytes shared, {each['wgmma']} wgmma, {each['bulk_copies']} bulk copies", end=""
            )  # fmt: skip
    assert found["forward"]["spilled"] == found["backward_q"]["spilled"] == found["own"]["spilled"] == 0
    assert found["backward_kv"]["spilled"] <= 160
    for kernel in ("forward", "backward_q", "backward_kv"):
        assert found[kernel]["wgmma"] > 0 and found[kernel]["bulk_copies"] > 0
        assert found[kernel]["shared"] <= SHARED[90]


@pytest.mark.parametrize(
    ("capability", "dtype", "dim"),
    [
        (90, "bfloat16", 64),
        (90, "bfloat16", 256),
        (80, "float32", 128),
        (89, "float16", 256),
    ],
)
def test_every_table_compiles_and_fits(capability: int, dtype: str, dim: int, tmp_path: Path) -> None:
    for each in resources(capability, dtype, dim, tmp_path).values():
        assert each["shared"] <= SHARED[capability]
