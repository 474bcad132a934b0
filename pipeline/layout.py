"""Layouts: the ordered streams of a grid, and which role is written where (DESIGN §4).

Needs the standard library alone, so that a dataset can be read on a machine that only trains. Layout files are read by
:mod:`pipeline.layout_file`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["input", "output", "internal"]

#: What a layout may say of a role instead of naming a stream.
DROP, REJECT = "drop", "reject"


@dataclass(frozen=True, slots=True)
class Clock:
    """A stream that says the token ``tick`` at rows 0, every, 2·every, …"""

    every: int
    tick: str


@dataclass(frozen=True, slots=True)
class Stream:
    """One lane of the grid."""

    name: str
    kind: Kind
    loss: float = 1.0
    silence_loss: float = 1.0
    end: bool = False
    lane_of: str | None = None
    clock: Clock | None = None

    @property
    def written(self) -> bool:
        """Whether the model writes this stream."""
        return self.kind != "input"


@dataclass(frozen=True, slots=True)
class Layout:
    """An expanded layout. ``streams[i]`` is stream number i everywhere."""

    name: str
    streams: tuple[Stream, ...]
    roles: dict[str, str]
    #: For a stream, the names of the other streams that it may read; a stream that is absent reads all.
    visibility: dict[str, list[str]] | None = None
    relay: Literal["refused", "allowed"] = "refused"
    silence: str | None = None
    end: str | None = None
    description: str = field(default="", compare=False)

    def index(self) -> dict[str, int]:
        """Stream numbers by name."""
        return {stream.name: number for number, stream in enumerate(self.streams)}

    def written(self) -> dict[str, bool]:
        """For every stream's name, whether the model writes it."""
        return {stream.name: stream.written for stream in self.streams}

    def lanes(self, name: str) -> list[str]:
        """The streams that ``name`` stands for: its lanes, or itself."""
        return [stream.name for stream in self.streams if name in (stream.lane_of, stream.name)]

    def sees(self, reader: str, other: str) -> bool:
        """Whether ``reader`` may read ``other``; a stream always reads itself."""
        if reader == other or self.visibility is None:
            return True
        return other in self.visibility.get(reader, (other,))

    def to_dict(self) -> dict[str, Any]:
        """The expanded layout as it stands in the manifest: every stream's values written out, no description."""
        document: dict[str, Any] = {
            "name": self.name,
            "streams": [_stream_to_dict(stream) for stream in self.streams],
            "roles": self.roles,
        }
        if self.visibility is not None:
            document["visibility"] = self.visibility
        return document | {"relay": self.relay, "silence": self.silence, "end": self.end}

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> Layout:
        """An expanded layout, as :meth:`to_dict` gives it."""
        streams = (
            Stream(**entry | {"clock": Clock(**entry["clock"])}) if "clock" in entry else Stream(**entry)
            for entry in document["streams"]
        )
        return Layout(**{**document, "streams": tuple(streams)})


def _stream_to_dict(stream: Stream) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": stream.name,
        "kind": stream.kind,
        "loss": stream.loss,
        "silence_loss": stream.silence_loss,
        "end": stream.end,
    }
    if stream.lane_of is not None:
        document["lane_of"] = stream.lane_of
    if stream.clock is not None:
        document["clock"] = {"every": stream.clock.every, "tick": stream.clock.tick}
    return document
