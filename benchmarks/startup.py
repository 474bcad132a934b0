"""How long the command line takes to answer: ``pipeline --help``, and ``convert --ray off`` of ten conversations.

The limit beside it: starting the same Python and doing nothing. Medians; files in the page cache.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import median, parser, records, report


def seconds(command: list[str], rounds: int) -> float:
    """The median time of a command."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return round(median(times), 3)


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=9)
    given = options.parse_args()
    pipeline = [sys.executable, "-m", "pipeline"]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "ten.jsonl"
        corpus.write_bytes(b"\n".join(records(given.corpus, 10)) + b"\n")
        convert = [*pipeline, "convert", "--input", str(corpus), "--out", f"{folder}/out", "--ray", "off", "--fresh"]
        report(
            "startup",
            {
                "python_s": seconds([sys.executable, "-c", "pass"], given.rounds),
                "help_s": seconds([*pipeline, "--help"], given.rounds),
                "help_s_asked": 0.3,
                "convert_ten_builtin_s": seconds(convert, given.rounds),
                "convert_ten_given_tokenizer_s": seconds([*convert, "--tokenizer", given.tokenizer], given.rounds),
                "convert_ten_s_asked": 1.5,
            },
            given.json,
        )


if __name__ == "__main__":
    main()
