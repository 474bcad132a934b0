"""Turn chat and agent corpora into validated stream grids for multi-stream language models.

>>> import pipeline
>>> ds = pipeline.open_dataset("grids/")        # doctest: +SKIP
>>> ds[0].dense()                               # doctest: +SKIP

Importing this package imports neither ray, vllm, polars, torch nor click.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.store.dataset import Dataset

__version__ = "0.1.0"


def open_dataset(location: str, silence_id: int | None = None) -> Dataset:
    """Open a dataset by its path or URL; see :func:`pipeline.store.dataset.open_dataset`."""
    from pipeline.store import dataset

    return dataset.open_dataset(location, silence_id)
