"""Peak memory on an input and on one ten times as large: it must not grow with the input (within 10 %).

Runs ``convert`` twice with two Ray workers, each time started anew, and once more in one process. A worker's peak is what
every worker reports with its shards (run.json); the driver's is the kernel's mark of the process that was started, read
while it runs. In one process, driver and worker are the same; the driver's figure then also has the end of the run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from common import parser, progress, records, report


class Peaks(NamedTuple):
    """Bytes."""

    worker: int
    driver: int


def peaks_of(corpus: Path, out: Path, tokenizer: str, ray: list[str]) -> Peaks:
    """The largest worker of one run, and its driver."""
    command = [sys.executable, "-m", "pipeline", "convert", "--input", str(corpus), "--out", str(out), "--fresh"]
    command += ["--tokenizer", tokenizer, *ray]
    driver = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            driver = max(driver, _high_water(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"exit {process.returncode}: {' '.join(command)}")
    return Peaks(int(json.loads((out / "run.json").read_text())["worker_peak_rss_bytes"]), driver)


def _high_water(pid: int) -> int:
    """The largest resident memory that a process has had so far; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def main() -> None:
    """Run on 1x and 10x and report."""
    options = parser(__doc__)
    options.add_argument("--conversations", type=int, default=12_288, help="records of the smaller input")
    given = options.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix, compress in ((".jsonl", False), (".jsonl.zst", True)):
            for name, ray in (
                ("ray_2_workers", ["--ray", "local", "--workers", "2"]),
                ("one_process", ["--ray", "off"]),
            ):
                peaks: list[Peaks] = []
                for factor in (1, 10):
                    data = b"\n".join(records(given.corpus, given.conversations * factor)) + b"\n"
                    if compress:
                        import zstandard

                        data = zstandard.ZstdCompressor(3).compress(data)
                    corpus = Path(folder) / f"corpus-{factor}{suffix}"
                    corpus.write_bytes(data)
                    peaks.append(peaks_of(corpus, Path(folder) / "out", given.tokenizer, ray))
                    worker, driver = (round(size / 2**20) for size in peaks[-1])
                    progress(f"{name} {suffix} {factor}x: worker {worker} MiB, driver {driver} MiB")
                results[f"{name}{suffix.replace('.', '_')}"] = {
                    "peak_mib_1x": round(peaks[0].worker / 2**20),
                    "peak_mib_10x": round(peaks[1].worker / 2**20),
                    "ratio": round(peaks[1].worker / peaks[0].worker, 3),
                    "driver_peak_mib_1x": round(peaks[0].driver / 2**20),
                    "driver_peak_mib_10x": round(peaks[1].driver / 2**20),
                    "driver_ratio": round(peaks[1].driver / peaks[0].driver, 3),
                }
    report("memory", {"conversations": given.conversations, **results, "asked_ratio": 1.1}, given.json)


if __name__ == "__main__":
    main()
