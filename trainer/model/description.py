"""What a model must be told beside its weights: its streams, and how it was trained to read them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.store.dataset import Dataset, Layout
from pipeline.store.manifest import TokenizerEntry

if TYPE_CHECKING:
    from trainer.data import DataOptions, Loader

FILE = "streams.json"
VERSION = 1


@dataclass(frozen=True)
class Description:
    """``streams.json``. ``layout`` holds the chosen streams in the order of the stream vectors."""

    layout: Layout
    tokenizer: TokenizerEntry
    #: ``skip``: silent cells are keys for no other cell; ``keys``: they are.
    silence: str
    #: Whether a silent row precedes row 0, which then has position id 1.
    virtual_rows: bool
    #: The fingerprint of the dataset.
    dataset: str

    def visibility(self) -> NDArray[np.bool_] | None:
        """bool [C, C], row = who reads; None where every stream reads every stream."""
        names = list(self.layout.index())
        sees = np.array([[self.layout.sees(reader, other) for other in names] for reader in names])
        return None if sees.all() else sees

    def encode(self) -> str:
        """As JSON."""
        document = {
            "version": VERSION,
            "layout": self.layout.to_dict(),
            "tokenizer": asdict(self.tokenizer),
            "silence": self.silence,
            "virtual_rows": self.virtual_rows,
            "dataset": self.dataset,
        }
        return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def describe(dataset: Dataset, loader: Loader, options: DataOptions) -> Description:
    """What a model that is trained on these data must be told."""
    layout = dataset.layout
    own = {stream.name: stream for stream in layout.streams}
    # The weights are those that count, not the layout's.
    streams = tuple(replace(own[s.name], loss=s.loss, silence_loss=s.silence_loss) for s in loader.streams)
    names = {stream.name for stream in streams}
    kept = {name for stream in streams for name in (stream.name, stream.lane_of)}
    visibility = layout.visibility and {
        reader: [name for name in others if name in names]
        for reader, others in layout.visibility.items()
        if reader in names
    }
    roles = {role: stream if stream in kept or stream == "reject" else "drop" for role, stream in layout.roles.items()}
    layout = replace(layout, streams=streams, roles=roles, visibility=visibility)
    manifest = dataset.manifest
    return Description(layout, manifest.tokenizer, options.silence, options.virtual_rows, manifest.fingerprint)


def read(directory: Path) -> Description | None:
    """The description in a directory, or None where there is none. Raises UserError."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        if document["version"] > VERSION:
            raise UserError(f"{path}: version {document['version']}, but this program knows {VERSION}; update it")
        return Description(
            Layout.from_dict(document["layout"]),
            TokenizerEntry(**document["tokenizer"]),
            document["silence"],
            document["virtual_rows"],
            document["dataset"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged: {error!r}") from None
