"""Layout files: read, checked, lanes and defaults expanded (DESIGN §4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.errors import UserError
from pipeline.layout import DROP, REJECT, Clock, Layout, Stream
from pipeline.resources import find_yaml


def load_layout(given: str | Mapping[str, Any], base: Path | None = None, lanes: int | None = None) -> Layout:
    """A shipped layout by name, a YAML file by path, or a mapping that is a layout already.

    ``lanes`` overrides the number of lanes of the stream that tool results go to.
    Raises :class:`UserError` naming file, key and remedy.
    """
    if isinstance(given, str):
        path = find_yaml("layouts", given, base)
        return expand(schema.load_yaml("layout", path), str(path), lanes)
    schema.check("layout", given, "layout")
    return expand(given, "layout", lanes)


def expand(document: Mapping[str, Any], where: str, lanes: int | None = None) -> Layout:
    """Expand lanes and defaults of a layout that satisfies the schema, and check what a schema cannot."""
    streams: list[Stream] = []
    laned: dict[str, list[str]] = {}
    results = document["roles"]["result"]
    for entry in document["streams"]:
        written = entry["kind"] != "input"
        common = {
            "kind": entry["kind"],
            "loss": float(entry.get("loss", 1.0 if written else 0.0)),
            "silence_loss": float(entry.get("silence_loss", 1.0)),
            "end": bool(entry.get("end", written)),
        }
        if "clock" in entry:
            if written:
                raise UserError(f"{where}: stream '{entry['name']}': a clock is written by the world: kind: input")
            common["clock"] = Clock(**entry["clock"])
        if common["loss"] and not written:
            raise UserError(f"{where}: stream '{entry['name']}': the world writes it, so its loss is 0; leave loss out")
        count = entry.get("lanes")
        if lanes is not None and entry["name"] == results:
            count = lanes
        if count is None:
            streams.append(Stream(name=entry["name"], lane_of=entry.get("lane_of"), **common))
        else:
            laned[entry["name"]] = [f"{entry['name']}.{lane}" for lane in range(count)]
            streams.extend(Stream(name=n, lane_of=entry["name"], **common) for n in laned[entry["name"]])
    visibility = document.get("visibility")
    if visibility is not None:
        visibility = {
            reader: list(dict.fromkeys(n for name in names for n in laned.get(name, [name])))
            for base, names in visibility.items()
            for reader in laned.get(base, [base])
        }
    layout = Layout(
        name=document["name"],
        description=document.get("description", ""),
        streams=tuple(streams),
        roles=dict(document["roles"]),
        visibility=visibility,
        relay=document.get("relay", "refused"),
        silence=document.get("silence"),
        end=document.get("end"),
    )
    _check_names(layout, where)
    if layout.relay == "refused":
        _check_relays(layout, where)
    return layout


def _check_names(layout: Layout, where: str) -> None:
    names = [stream.name for stream in layout.streams]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"{where}: streams: the name {', '.join(twice)} is given twice")
    if {DROP, REJECT} & set(names):
        raise UserError(f"{where}: streams: '{DROP}' and '{REJECT}' cannot be names of streams")
    for role, target in layout.roles.items():
        if target in (DROP, REJECT):
            continue
        lanes = layout.lanes(target)
        if not lanes:
            raise UserError(
                f"{where}: roles.{role}: no stream is named '{target}'; "
                f"known: {', '.join(names)}, or {DROP}, or {REJECT}"
            )
        streams = [stream for stream in layout.streams if stream.name in lanes]
        if streams[0].clock is not None:
            raise UserError(f"{where}: roles.{role}: '{target}' is a clock and says only its ticks")
        if len(lanes) > 1 and role != "result":
            raise UserError(f"{where}: roles.{role}: '{target}' has lanes, which only tool results can use")
        by_model = role in ("think", "answer", "call")
        if by_model != streams[0].written:
            writer = "the model" if by_model else "the world"
            raise UserError(f"{where}: roles.{role} is written by {writer}, but '{target}' has kind {streams[0].kind}")
    if layout.roles["call"] == DROP and layout.roles["result"] not in (DROP, REJECT):
        raise UserError(f"{where}: roles: where calls are dropped their results must be dropped too")
    for reader, others in (layout.visibility or {}).items():
        for name in (reader, *others):
            if name not in names:
                raise UserError(f"{where}: visibility.{reader}: no stream is named '{name}'; known: {', '.join(names)}")


def _check_relays(layout: Layout, where: str) -> None:
    """Isolation is real only if visibility is transitively closed: refuse a stream that passes on a hidden one."""
    names = [stream.name for stream in layout.streams]
    for reader in names:
        for relay in names:
            if not layout.sees(reader, relay):
                continue
            for hidden in names:
                if layout.sees(relay, hidden) and not layout.sees(reader, hidden):
                    raise UserError(
                        f"{where}: visibility: '{reader}' may not read '{hidden}', but reads '{relay}', which does: "
                        f"'{relay}' is a relay. Hide '{relay}' from '{reader}' or '{hidden}' from '{relay}', "
                        f"or say 'relay: allowed'"
                    )
