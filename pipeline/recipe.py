"""Recipes: layout + planner + options, in one YAML file, by name (DESIGN §4).

An expanded recipe, its layout included, is everything besides inputs and tokenizer that decides what the bytes of a
dataset are. It stands in the manifest in full.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import yaml

from pipeline import schema
from pipeline.engines.spec import EngineSpec, checked
from pipeline.errors import UserError
from pipeline.layout import Layout
from pipeline.layout_file import load_layout
from pipeline.plan.planners import PLANNERS
from pipeline.plan.route import Filter
from pipeline.read.formats import FORMATS
from pipeline.read.options import ReadOptions
from pipeline.resources import find_yaml

if TYPE_CHECKING:
    from pipeline.teach.prompts import Prompt
    from pipeline.teach.settings import TeacherSettings


#: Records of a shard that a teacher plans: a thousand times as much work each as by rule, so commits come sooner.
_TAUGHT_RECORDS = 512


class RowLimit(msgspec.Struct, frozen=True):
    """The most rows a grid may have, and what happens to a conversation that has more."""

    max: int | None = None
    long: Literal["quarantine", "truncate", "window"] = "quarantine"


class Recipe(msgspec.Struct, frozen=True):
    """An expanded recipe."""

    name: str
    layout: Layout
    planner: str
    options: dict[str, Any]
    read: ReadOptions
    filter: Filter
    rows: RowLimit
    description: str = ""
    #: Only where the planner is a teacher: its prompt, how it is asked, and arguments of the engine. The last decide
    #: nothing about the bytes, given the answers.
    prompt: Prompt | None = None
    teacher: TeacherSettings | None = None
    engine: dict[str, Any] = {}

    @property
    def needs_output(self) -> bool:
        """Whether a conversation must hold something that a model wrote. If not, its plan stands in its place."""
        return not getattr(find_planner(self.planner), "REPLACES", False)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as it stands in the manifest: every default written out, the layout by its name, no description."""
        read = {name: getattr(self.read, name) for name in ("format", "messages_field", "max_record_bytes", "limit")}
        taught = {"prompt": msgspec.to_builtins(self.prompt), "teacher": msgspec.to_builtins(self.teacher)}
        return {
            "name": self.name,
            "layout": self.layout.name,
            "planner": self.planner,
            "options": self.options,
            **(taught if self.prompt is not None else {}),
            "read": read,
            "filter": msgspec.to_builtins(self.filter),
            "rows": msgspec.to_builtins(self.rows),
            "shard": {"records": self.read.shard_records, "bytes": self.read.shard_bytes},
        }


def load_recipe(given: str, settings: Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped recipe by name or a YAML file by path, with ``KEY=VALUE`` settings applied.

    ``overrides`` maps dotted keys (``read.format``) to values that other command line options set.
    Raises :class:`UserError` naming file or option, key and remedy.
    """
    path = find_yaml("recipes", given)
    return _adjusted(schema.load_yaml("recipe", path), str(path), path.parent, settings, overrides)


def from_manifest(
    recipe: Mapping[str, Any],
    layout: Mapping[str, Any],
    settings: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe that a manifest holds, with its expanded layout; see :func:`load_recipe` for the rest."""
    return _adjusted({**recipe, "layout": layout}, f"recipe {recipe['name']}", None, settings, overrides)


def _adjusted(
    document: Mapping[str, Any],
    where: str,
    base: Path | None,
    settings: Sequence[str],
    overrides: Mapping[str, Any] | None,
) -> Recipe:
    adjusted = copy.deepcopy(dict(document))
    for setting in settings:
        key, value = _parse_setting(setting)
        _set(adjusted, key, value, f"--set {setting}")
    for key, value in (overrides or {}).items():
        _set(adjusted, key, value, key)
    if settings:
        where = f"recipe {document['name']}, " + " ".join(f"--set {setting}" for setting in settings)
    schema.check("recipe", adjusted, where)
    return expand(adjusted, where, base)


def expand(document: Mapping[str, Any], where: str, base: Path | None = None) -> Recipe:
    """Fill in the defaults of a recipe that satisfies the schema. ``base``: where relative layout paths start."""
    module = find_planner(document["planner"])
    options = msgspec.to_builtins(msgspec.convert(document.get("options", {}), module.Options))
    teaching = _teaching(module, document, where, base)
    read = dict(document.get("read", {}))
    shard = ({"records": _TAUGHT_RECORDS} if teaching else {}) | document.get("shard", {})
    formats = ["auto", *FORMATS]
    if read.get("format", "auto") not in formats:
        raise UserError(f"{where}: read.format (--format): '{read['format']}' is not one of {', '.join(formats)}")
    return Recipe(
        name=document["name"],
        description=document.get("description", ""),
        layout=load_layout(document["layout"], base, options.get("lanes")),
        planner=document["planner"],
        options=options,
        read=ReadOptions(**read, **{f"shard_{key}": value for key, value in shard.items()}),
        filter=Filter(**document.get("filter", {})),
        rows=RowLimit(**document.get("rows", {})),
        **teaching,
    )


def find_planner(name: str) -> ModuleType:
    """The module of a planner, rule or teacher; the recipe schema knows no other names."""
    if name in PLANNERS:
        return PLANNERS[name]
    from pipeline.teach.planners import TEACHERS  # templates and all that: not for who converts by rule

    return TEACHERS[name]


def _teaching(module: ModuleType, document: Mapping[str, Any], where: str, base: Path | None) -> dict[str, Any]:
    """Prompt, settings and engine arguments of a planner that is a teacher; nothing for a rule."""
    if document["planner"] in PLANNERS:
        for key in ("prompt", "teacher", "engine"):
            if key in document:
                raise UserError(f"{where}: {key}: the planner {document['planner']} asks no model; leave it out")
        return {}
    from pipeline.teach.prompts import Prompt, load_prompt
    from pipeline.teach.settings import teacher_settings

    given = document.get("prompt", module.PROMPT)
    prompt = load_prompt(given, base) if isinstance(given, str) else msgspec.convert(given, Prompt)
    settings = teacher_settings(document.get("teacher", {}), where)
    return {"prompt": prompt, "teacher": settings, "engine": document.get("engine", {})}


def is_planner_setting(setting: str, planner: str) -> bool:
    """Whether ``KEY=VALUE`` sets the planner or one of its options."""
    key = setting.partition("=")[0].strip().removeprefix("options.").partition(".")[0]
    return key == "planner" or key in find_planner(planner).Options.__struct_fields__


def _parse_setting(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {setting}: write KEY=VALUE, for example --set k=3")
    try:
        return key.strip(), yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {setting}: the value is not valid YAML") from None


def _set(document: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set one key: an option of the planner, a top-level key, or a dotted path such as ``shard.records``."""
    planner = document["planner"]
    known_planners = schema.load("recipe")["properties"]["planner"]["enum"]
    options = list(find_planner(planner).Options.__struct_fields__) if planner in known_planners else []
    sections = {name: list(rule["properties"]) for name, rule in _sections().items()}
    first, _, rest = key.partition(".")
    if key in options:
        document.setdefault("options", {})[key] = value
    elif first == "options" and rest in options:
        document.setdefault("options", {})[rest] = value
    elif first in options and rest:  # an entry of an option that is a mapping, such as priority.search=1
        document.setdefault("options", {}).setdefault(first, {})[rest] = value
    elif key in ("layout", "planner", "prompt", "name", "description"):
        if key == "planner" and value != planner:
            document["options"] = {}
            for other in ("prompt", "teacher", "engine"):
                document.pop(other, None)
        document[key] = value
    elif first in sections and rest in sections[first]:
        document.setdefault(first, {})[rest] = value
    else:
        known = [*options, "layout", "planner", "prompt"] + [
            f"{s}.{name}" for s, names in sections.items() for name in names
        ]
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{where}: no such option; {hint}known for planner {planner}: {', '.join(known)}")


def _sections() -> dict[str, Any]:
    return {name: rule for name, rule in schema.load("recipe")["properties"].items() if "properties" in rule}


def engine_for(recipe: Recipe, engine: EngineSpec | None, answers: str | None) -> EngineSpec | None:
    """The engine with the recipe's arguments, of which those of the command line win; None where no model is asked.

    The recipe's arguments are those of vLLM's engine: they are for ``vllm`` alone, and a server, which has been given its
    own, is sent nothing of them.
    Raises :class:`UserError` where engine and planner do not go together, or an argument is wrong.
    """
    if recipe.prompt is None:
        if engine is not None or answers is not None:
            option = "--engine" if engine is not None else "--answers"
            raise UserError(
                f"{option}: the planner {recipe.planner} asks no model; leave it out, or choose a recipe whose planner "
                f"does, such as --recipe align"
            )
        return None
    if engine is None:
        raise UserError(
            f"--recipe {recipe.name}: the planner {recipe.planner} asks a model. Add --engine vllm --model NAME, or "
            f"--engine http://HOST:PORT/v1; or --plans DIR to schedule plans again that were made before"
        )
    if engine.kind != "vllm":
        return engine
    return checked(replace(engine, args=tuple(sorted({**recipe.engine, **dict(engine.args)}.items()))))
