"""Recipes: what is shipped loads; settings and options are checked before any work, naming what is right."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from pipeline import schema
from pipeline.errors import Reason, UserError
from pipeline.plan.planners import PLANNERS
from pipeline.plan.route import Filter
from pipeline.read.options import ReadOptions
from pipeline.recipe import RowLimit, find_planner, from_manifest, load_recipe
from pipeline.resources import shipped
from pipeline.teach.planners import TEACHERS
from pipeline.teach.settings import TeacherSettings


@pytest.mark.parametrize("name", sorted(shipped("recipes")))
def test_every_shipped_recipe_loads_and_the_manifest_gives_it_back(name: str) -> None:
    recipe = load_recipe(name)
    stored = json.loads(json.dumps(recipe.to_dict())), json.loads(json.dumps(recipe.layout.to_dict()))
    again = from_manifest(*stored)
    assert (again.to_dict(), again.layout.to_dict()) == (recipe.to_dict(), recipe.layout.to_dict())
    assert schema.problems("recipe", stored[0]) == []


@pytest.mark.parametrize("planner", sorted(PLANNERS | TEACHERS))
def test_the_schema_describes_the_options_that_a_planner_has(planner: str) -> None:
    rules = {rule["if"]["properties"]["planner"]["const"]: rule["then"] for rule in schema.load("recipe")["allOf"]}
    described = rules[planner]["properties"]["options"]
    assert set(described["properties"]) == set(find_planner(planner).Options.__struct_fields__)
    assert described["additionalProperties"] is False


def test_the_schema_describes_every_planner_section_and_reason() -> None:
    properties = schema.load("recipe")["properties"]
    assert properties["planner"]["enum"] == [*PLANNERS, *TEACHERS]
    assert set(properties["teacher"]["properties"]) == set(TeacherSettings.__struct_fields__)
    assert set(properties["filter"]["properties"]) == set(Filter.__struct_fields__)
    assert set(properties["rows"]["properties"]) == set(RowLimit.__struct_fields__)
    read = {name for name in ReadOptions.__struct_fields__ if not name.startswith("shard_")}
    assert set(properties["read"]["properties"]) == read
    assert set(schema.load("quarantine")["properties"]["reason"]["enum"]) == {str(reason) for reason in Reason}


def test_settings_override_options_sections_and_the_layout() -> None:
    recipe = load_recipe("wait-k", ["unit=token", "k=3", "rows.max=100", "rows.long=window", "layout=chat-2"])
    assert recipe.options == {"unit": "token", "k": 3}
    assert recipe.rows == RowLimit(100, "window")
    assert recipe.layout.name == "chat-2"
    assert load_recipe("wait-k", ["k=full"]).options["k"] == "full"
    assert load_recipe("wait-k", ["options.k=0"]).options["k"] == 0
    assert load_recipe("agent", ["priority.search=2", "lanes=3"]).options["priority"] == {"search": 2}
    assert load_recipe("agent", [], {"read.format": "openai"}).read.format == "openai"


def test_another_planner_starts_from_its_own_defaults() -> None:
    recipe = load_recipe("wait-k", ["planner=agent", "layout=agent", "latency=5"])
    assert recipe.options == msgspec.to_builtins(PLANNERS["agent"].Options(latency=5))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("uint=token", "did you mean unit"),
        ("latency=3", "known for planner wait-k: unit, k"),
        ("rows.mux=3", "did you mean rows.max"),
        ("k", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("k=[", "not valid YAML"),
        ("k=-1", "options.k"),
        (f"k={2**31}", "options.k"),
        ("k=many", "0, 1, 2, …, or full"),
        ("k=1.5", "options.k"),
        ("unit=word", "options.unit"),
        ("rows.max=0", "rows.max"),
        ("rows.max=ten", "rows.max"),
        ("rows.long=never", "rows.long"),
        ("read.format=xml", "auto, harmony, openai"),
        ("layout=chat-9", "no layout named 'chat-9'"),
        ("planner=best", "planner"),
        ("shard.records=0", "shard.records"),
    ],
)
def test_a_wrong_setting_is_refused_naming_what_is_right(setting: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("wait-k", [setting])
    assert said in str(caught.value)


def test_a_recipe_of_ones_own_finds_its_layout_beside_it(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(shipped("layouts")["chat-2"].read_text())
    (tmp_path / "mine.yaml").write_text("name: mine\nlayout: two.yaml\nplanner: sequential\n")
    assert load_recipe(str(tmp_path / "mine.yaml")).layout.name == "chat-2"


def test_an_unknown_key_in_a_file_names_file_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nlayout: chat-2\nplanner: sequential\nfilters: {}\n")
    with pytest.raises(UserError, match=r"mine.yaml.*filters.*known keys: .*filter"):
        load_recipe(str(path))
