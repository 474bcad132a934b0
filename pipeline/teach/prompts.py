"""Prompts: a folder of Jinja templates, read once, known by its hash.

A template sees only what its planner gives it, in a sandbox; corpus text goes in through the fence
(:mod:`pipeline.teach.data`) and stays behind it (:mod:`pipeline.teach.insertions`). It may include the other templates
of its folder, and the shared ones as ``_shared/NAME.jinja``; nothing else can be reached. Rendering is a function of
templates and values: no clock, no chance.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import (
    Environment,
    FunctionLoader,
    StrictUndefined,
    Template,
    TemplateError,
    TemplateNotFound,
    TemplateSyntaxError,
    meta,
    nodes,
)
from jinja2.environment import TemplateModule
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.errors import UserError
from pipeline.resources import folder
from pipeline.teach.data import guarded
from pipeline.teach.insertions import data, inserted, join, rendered

#: Templates for every prompt stand in this folder beside the shipped ones, and are included by this name.
SHARED = "_shared"

#: Says what was wrong with an answer; every prompt has one, its own or the shared one.
RETRY = "retry.jinja"

#: Not for prompts: ``truncate`` is silent, the others draw lots or write Python.
_LEFT_OUT = ("truncate", "random", "pprint", "safe")


class Prompt(msgspec.Struct, frozen=True):
    """All templates that one planner's prompts are made from. Needs no files, can be sent to any process."""

    #: The folder's name.
    name: str
    #: File name to text, the shared templates that are used included.
    templates: dict[str, str]

    @property
    def sha256(self) -> str:
        """The hash of all names and texts, in hex."""
        return _sha256(tuple(sorted(self.templates.items())))

    def render(self, template: str, /, **values: Any) -> str:
        """One template with values: strings are corpus text and fenced, unless they are :class:`Plain`.

        Raises :class:`UserError` naming prompt, template and line: a template that is missing or asks for what it is
        not given or may not have; and one that cuts, changes or drops a text that it has inserted.
        """
        try:
            made = _environment(tuple(sorted(self.templates.items()))).get_template(template)
            given = {name: guarded(value) for name, value in values.items()}
            return rendered(lambda: made.render(given), template)
        except TemplateNotFound as error:
            raise _missing(self.name, str(error.name or template), self.templates) from None
        except Exception as error:  # whatever a template does wrong, it is the template
            where, line = _last_line(error, self.templates) or (template, 0)
            at = f"{where}, line {line}" if line else where
            raise UserError(f"prompt {self.name}: {at}: {_in_words(error)}") from error

    def check(self, template: str, *given: str) -> None:
        """That there is such a template and that it asks only for the values ``given``. Raises :class:`UserError`."""
        names, waiting = [template], [template]
        environment = _parser()
        while waiting:
            name = waiting.pop()
            if name not in self.templates:
                raise _missing(self.name, name, self.templates)
            tree = environment.parse(self.templates[name])
            unknown = sorted(meta.find_undeclared_variables(tree) - set(given) - set(_environment(()).globals))
            # What an including template sets reaches the included one, so only the first is sure to be wrong.
            if unknown and name == template:
                line = next(node.lineno for node in tree.find_all(nodes.Name) if node.name == unknown[0])
                raise UserError(
                    f"prompt {self.name}: {name}, line {line}: there is no {unknown[0]}; this template is given "
                    f"{', '.join(given) or 'nothing'}"
                )
            found = [each for each in meta.find_referenced_templates(tree) if each and each not in names]
            names += found
            waiting += found


def load_prompt(given: str, base: Path | None = None) -> Prompt:
    """A shipped prompt by name, or the path of a folder (relative to ``base`` first, where one is given).

    Raises :class:`UserError` naming folder, file and line.
    """
    shipped = {path.name: path for path in sorted(folder("prompts").iterdir()) if path.is_dir() and path.name != SHARED}
    candidates = (
        [shipped[given]] if given in shipped else [Path(given)] if base is None else [base / given, Path(given)]
    )
    found = next((path for path in candidates if path.is_dir()), None)
    if found is None:
        known = ", ".join(shipped) or "none"
        raise UserError(f"prompt {given}: no such folder; shipped prompts are {known}; or give the path of a folder")
    own = {path.name: _read(path) for path in sorted(found.glob("*.jinja"))}
    if not own:
        raise UserError(f"prompt {given}: {found} holds no template (NAME.jinja)")
    prompt = Prompt(found.resolve().name, dict(sorted(_with_shared(own, found).items())))
    prompt.check(RETRY, "problem")
    return prompt


def _with_shared(own: dict[str, str], found: Path) -> dict[str, str]:
    """The folder's templates and all shared ones that they reach. Every template is parsed."""
    templates = dict(own)
    environment = _parser()
    if RETRY not in templates:
        templates[RETRY] = f"{{% include '{SHARED}/{RETRY}' %}}"
    waiting = list(templates)
    while waiting:
        name = waiting.pop()
        where = found / name if name in own else folder("prompts") / name
        try:
            tree = environment.parse(templates[name], name)
            environment.compile(templates[name], name)
        except TemplateSyntaxError as error:
            raise UserError(f"{where}: line {error.lineno}: {error.message}") from None
        for reached in meta.find_referenced_templates(tree):
            if reached is None:
                raise UserError(
                    f"{where}: write the name of what it includes in full: what is computed cannot be hashed"
                )
            if reached in templates:
                continue
            shared = folder("prompts") / reached
            if shared.parent != folder("prompts") / SHARED or not shared.is_file():
                raise UserError(f"{where}: includes {reached}, which is neither in this folder nor in {SHARED}/")
            templates[reached] = _read(shared)
            waiting.append(reached)
    return templates


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


@lru_cache(maxsize=256)
def _sha256(templates: tuple[tuple[str, str], ...]) -> str:
    canonical = json.dumps(dict(templates), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


@lru_cache(maxsize=256)
def _environment(templates: tuple[tuple[str, str], ...]) -> Environment:
    """What renders a prompt's templates; each is compiled once in a process."""
    texts = dict(templates)

    def load(name: str) -> tuple[str, str, None] | None:
        return (texts[name], name, None) if name in texts else None

    return _made(FunctionLoader(load))


@lru_cache(maxsize=1)
def _parser() -> Environment:
    return _made(None)


def _made(loader: FunctionLoader | None) -> Environment:
    environment = ImmutableSandboxedEnvironment(
        loader=loader,
        undefined=StrictUndefined,
        finalize=inserted,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        cache_size=-1,
    )
    environment.template_class = _Template
    environment.filters.update(data=data, join=join)
    for name in _LEFT_OUT:
        del environment.filters[name]
    del environment.globals["lipsum"]
    return environment


class _Template(Template):
    """What is imported is made again for every prompt: Jinja keeps it, and with it counters and texts of other prompts."""

    def _get_default_module(self, ctx: Context | None = None) -> TemplateModule:
        self._module = None
        return super()._get_default_module(ctx)


def _last_line(error: BaseException, templates: dict[str, str]) -> tuple[str, int] | None:
    """The innermost place in a template that an error went through."""
    if isinstance(error, TemplateSyntaxError):
        return error.name or "?", error.lineno
    place = None
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name in templates:
            place = name, trace.tb_lineno
        trace = trace.tb_next
    return place


def _in_words(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return error.message or type(error).__name__
    return str(error) if isinstance(error, TypeError) else f"{type(error).__name__}: {error}"


def _missing(prompt: str, template: str, templates: dict[str, str]) -> UserError:
    return UserError(f"prompt {prompt}: there is no template {template}; it has {', '.join(sorted(templates))}")
