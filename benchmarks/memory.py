"""Peak memory of a worker on an input and on one ten times as large: it must not grow with the input (within 10 %).

Runs ``convert`` twice with two Ray workers, each time started anew, and once more in one process, and reads the peak
resident memory that every worker reports with its shards (run.json).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import parser, progress, records, report


def peak(corpus: Path, out: Path, tokenizer: str, ray: list[str]) -> int:
    """Bytes of the largest worker of one run."""
    command = [sys.executable, "-m", "pipeline", "convert", "--input", str(corpus), "--out", str(out), "--fresh"]
    subprocess.run([*command, "--tokenizer", tokenizer, *ray], check=True, capture_output=True)
    return int(json.loads((out / "run.json").read_text())["worker_peak_rss_bytes"])


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
                peaks = []
                for factor in (1, 10):
                    data = b"\n".join(records(given.corpus, given.conversations * factor)) + b"\n"
                    if compress:
                        import zstandard

                        data = zstandard.ZstdCompressor(3).compress(data)
                    corpus = Path(folder) / f"corpus-{factor}{suffix}"
                    corpus.write_bytes(data)
                    peaks.append(peak(corpus, Path(folder) / "out", given.tokenizer, ray))
                    progress(f"{name} {suffix} {factor}x: {peaks[-1] / 2**20:.0f} MiB")
                results[f"{name}{suffix.replace('.', '_')}"] = {
                    "peak_mib_1x": round(peaks[0] / 2**20),
                    "peak_mib_10x": round(peaks[1] / 2**20),
                    "ratio": round(peaks[1] / peaks[0], 3),
                }
    report("memory", {"conversations": given.conversations, **results, "asked_ratio": 1.1}, given.json)


if __name__ == "__main__":
    main()
