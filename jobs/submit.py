"""The entry point of a Ray job: ``pipeline convert``, on the cluster that runs the job.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python -m jobs.submit --input s3://bucket/chats --out s3://bucket/grids --recipe agent

The options are those of ``pipeline convert``. A job runs in a copy of the working directory that is deleted after it, so
a relative path, which would be read from there or lost with it, is refused. A job that ends early can be submitted again:
it resumes. Engine processes that end with a worker which is killed (:mod:`pipeline.engines.parent`) need this package
installed on every node: vLLM finds what watches the worker among installed packages, not in a copy that a job brings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.cli import convert, main


class _Job(click.Command):
    """``convert`` with paths that mean the same on every node."""

    def invoke(self, ctx: click.Context) -> Any:
        given = ctx.params
        paths = [("--input", path) for path in given["inputs"]]
        paths += [("--out", given["out"]), ("--plans", given["plans"]), ("--answers", given["answers"])]
        for option, path in paths:
            if path is not None and "://" not in path and not Path(path).is_absolute():
                raise click.UsageError(
                    f"{option} {path}: a job runs in a copy of the working directory that is deleted after it; "
                    f"give an absolute path that every node sees, or a URL such as s3://bucket/{Path(path).name}",
                    ctx,
                )
        return super().invoke(ctx)


job = _Job("jobs.submit", params=convert.params, callback=convert.callback, help=convert.help)

if __name__ == "__main__":
    main(job)
