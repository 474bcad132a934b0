"""Layouts: what is shipped loads, and what is wrong is said with file, key and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.layout_file import load_layout
from pipeline.resources import shipped

GOOD: dict[str, Any] = {
    "name": "mine",
    "streams": [{"name": "user", "kind": "input"}, {"name": "out", "kind": "output"}],
    "roles": {"system": "user", "user": "user", "think": "drop", "answer": "out", "call": "reject", "result": "reject"},
}
ISOLATED = [
    {"name": "user", "kind": "input"},
    {"name": "think", "kind": "internal"},
    {"name": "out", "kind": "output"},
]


def changed(**keys: Any) -> dict[str, Any]:
    return {**GOOD, **keys}


@pytest.mark.parametrize("name", sorted(shipped("layouts")))
def test_every_shipped_layout_loads_and_its_expanded_form_means_the_same(name: str) -> None:
    layout = load_layout(name)
    assert layout.name == name
    assert load_layout(layout.to_dict()) == layout
    for stream in layout.streams:
        assert (stream.loss > 0) == stream.written


def test_the_layouts_of_the_design_are_shipped() -> None:
    streams = {name: [stream.name for stream in load_layout(name).streams] for name in shipped("layouts")}
    assert streams["chat-2"] == ["user", "output"]
    assert streams["chat-think-3"] == ["user", "think", "output"]
    assert streams["solve-audit-3"] == ["user", "output", "audit"]
    assert streams["agent"] == ["system", "user", "tool.0", "tool.1", "think", "call", "output"]
    assert streams["cognition-10"] == [
        "User", "Output", "Analytical", "Skeptical", "Intuitive", "Between", "Curious", "Void", "Instinct", "Synthesis",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (changed(streams=[{"name": "user", "kind": "speaker"}]), ["streams[0].kind", "speaker", "input"]),
        (changed(colour="red"), ["colour", "known keys: name"]),
        (
            changed(roles={**GOOD["roles"], "answer": "output"}),
            ["roles.answer", "'output'", "known: user, out, or drop"],
        ),
        (changed(roles={**GOOD["roles"], "answer": "user"}), ["roles.answer", "written by the model", "kind input"]),
        (changed(roles={**GOOD["roles"], "user": "out"}), ["roles.user", "written by the world", "kind output"]),
        (changed(streams=[*GOOD["streams"], {"name": "user", "kind": "input"}]), ["user is given twice"]),
        (changed(streams=[*GOOD["streams"], {"name": "drop", "kind": "input"}]), ["'drop'", "cannot be names"]),
        (
            changed(streams=[{"name": "user", "kind": "input", "lanes": 2}, GOOD["streams"][1]]),
            ["roles.system", "lanes"],
        ),
        (changed(visibility={"out": ["usr"]}), ["visibility.out", "'usr'", "known: user, out"]),
        (changed(roles={**GOOD["roles"], "call": "drop", "result": "user"}), ["their results must be dropped too"]),
        (
            changed(streams=[*GOOD["streams"], {"name": "c", "kind": "output", "clock": {"every": 2, "tick": "x"}}]),
            ["stream 'c'", "kind: input"],
        ),
        (
            changed(
                streams=[{"name": "user", "kind": "input", "clock": {"every": 2, "tick": "x"}}, GOOD["streams"][1]]
            ),
            ["roles.system", "'user' is a clock"],
        ),
    ],
)
def test_an_error_names_file_key_and_remedy(document: dict[str, Any], said: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError) as caught:
        load_layout(str(path))
    for text in [str(path), *said]:
        assert text in str(caught.value)


@pytest.mark.parametrize("text", ["- a list", "name: [", "\x00"])
def test_a_file_that_is_no_mapping_is_a_user_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_layout(str(path))


def test_a_name_that_is_not_shipped_names_those_that_are() -> None:
    with pytest.raises(UserError, match=r"no layout named 'chat-3'.*chat-2.*path of a YAML file"):
        load_layout("chat-3")


def test_a_relay_is_refused_by_name_unless_it_is_allowed() -> None:
    """The output may not read the user, but the thoughts that it reads may: they can pass the user on."""
    leaky = changed(streams=ISOLATED, visibility={"out": ["think"]}, roles={**GOOD["roles"], "think": "think"})
    with pytest.raises(UserError, match=r"'think' is a relay.*relay: allowed"):
        load_layout(leaky)
    assert not load_layout({**leaky, "relay": "allowed"}).sees("out", "user")
    closed = {**leaky, "visibility": {"out": ["think"], "think": ["out"]}}
    assert load_layout(closed).sees("out", "think")


def test_lanes_are_streams_of_their_own_and_visible_by_their_common_name() -> None:
    layout = load_layout(
        changed(
            streams=[*ISOLATED, {"name": "tool", "kind": "input", "lanes": 3}],
            roles={**GOOD["roles"], "think": "think", "call": "out", "result": "tool"},
            visibility={"tool": ["user"], "user": [], "think": ["tool", "user"], "out": ["tool", "user", "think"]},
        )
    )
    lanes = ["tool.0", "tool.1", "tool.2"]
    assert layout.lanes("tool") == lanes
    assert all(layout.sees("think", lane) for lane in lanes)
    assert not layout.sees("tool.0", "tool.1")


def test_lanes_can_be_overridden_for_results() -> None:
    assert load_layout("agent", lanes=5).lanes("tool") == [f"tool.{lane}" for lane in range(5)]
    assert load_layout("agent", lanes=1).lanes("tool") == ["tool.0"]
