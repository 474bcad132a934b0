"""Prompts: folders of templates, known by what is in them; every mistake is said with folder, file and line."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.teach.prompts import RETRY, Prompt, load_prompt


def _folder(path: Path, **templates: str) -> Path:
    path.mkdir()
    for name, text in templates.items():
        (path / f"{name}.jinja").write_text(text, newline="")
    return path


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    _folder(tmp_path / "mine", system="Judge.\n", user="{% include 'part.jinja' %}!\n", part="{{ text }}")
    prompt = load_prompt("mine", tmp_path)
    assert prompt.name == "mine"
    assert prompt.render("user.jinja", text="a\nb") == '"a\\nb"!'
    assert prompt == load_prompt(str(tmp_path / "mine"))


def test_it_needs_no_files_once_it_is_loaded(tmp_path: Path) -> None:
    path = _folder(tmp_path / "mine", user="{% include '_shared/retry.jinja' %}")
    prompt = pickle.loads(pickle.dumps(load_prompt(str(path))))
    (path / "user.jinja").unlink()
    assert "no" in prompt.render("user.jinja", problem="no")


def test_every_prompt_can_complain(tmp_path: Path) -> None:
    shared = load_prompt(str(_folder(tmp_path / "a", user="x")))
    own = load_prompt(str(_folder(tmp_path / "b", user="x", retry="Wrong: {{ problem }}")))
    assert '"no \\"k\\""' in shared.render(RETRY, problem='no "k"')
    assert own.render(RETRY, problem="no") == 'Wrong: "no"'
    with pytest.raises(UserError, match=r"retry\.jinja, line 1: there is no wrong; this template is given problem"):
        load_prompt(str(_folder(tmp_path / "c", user="x", retry="Wrong: {{ wrong }}")))


def test_the_hash_is_that_of_all_names_and_texts(tmp_path: Path) -> None:
    def made(folder: str, **templates: str) -> str:
        return load_prompt(str(_folder(tmp_path / folder, **templates))).sha256

    base = made("a", user="x", system="y")
    assert base == made("other-name", system="y", user="x")
    assert (
        len({base, made("c", user="x!", system="y"), made("d", user="y", system="x"), made("e", user="x", systen="y")})
        == 4
    )
    assert made("f", user="a\nb") == made("g", user="a\r\nb"), "line ends are the checkout's, not the author's"
    # What is included is part of it, whether it stands in the folder or is shared.
    one = Prompt("p", {"user.jinja": "{% include 'part.jinja' %}", "part.jinja": "1"})
    assert one.sha256 != Prompt("p", {**one.templates, "part.jinja": "2"}).sha256
    assert (
        "_shared/retry.jinja"
        in load_prompt(str(_folder(tmp_path / "h", user="{% include '_shared/retry.jinja' %}"))).templates
    )


def test_the_hash_and_the_text_are_the_same_in_another_process(tmp_path: Path) -> None:
    path = _folder(tmp_path / "mine", user="{% for k in d %}{{ k }}={{ d[k] }} {% endfor %}", system="y")
    code = (
        "import sys; from pipeline.teach.prompts import load_prompt; p = load_prompt(sys.argv[1]);"
        "print(p.sha256, p.render('user.jinja', d={'b': 'x', 'a': 'y', 'c': 'z'}))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    prompt = load_prompt(str(path))
    assert seen == {f'{prompt.sha256} "b"="x" "a"="y" "c"="z" \n'}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("one\n{% if %}", "user.jinja: line 2: Expected an expression"),
        ("{{ text|shorten }}", "user.jinja: line 1: No filter named 'shorten'"),
        ("{{ text|truncate(9) }}", "user.jinja: line 1: No filter named 'truncate'"),
        ("{{ [1, 2]|random }}", "user.jinja: line 1: No filter named 'random'"),
        ("{% include 'gone.jinja' %}", "user.jinja: includes gone.jinja"),
        ("{% include '../secret' %}", "user.jinja: includes ../secret"),
        ("{% include '_shared/../README.md' %}", "user.jinja: includes _shared/../README.md"),
        ("{% include name %}", "user.jinja: write the name of what it includes in full"),
    ],
)
def test_what_is_wrong_with_a_template_is_said_when_it_is_loaded(tmp_path: Path, template: str, said: str) -> None:
    path = _folder(tmp_path / "mine", user=template)
    with pytest.raises(UserError) as raised:
        load_prompt(str(path))
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("one\n\n{{ txt }}", "prompt mine: user.jinja, line 3: 'txt' is undefined"),
        ("{{ text.__class__ }}", "prompt mine: user.jinja, line 1: access to attribute '__class__'"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "prompt mine: user.jinja, line 1: access to attribute"),
        ("{{ items.append(1) }}", "prompt mine: user.jinja, line 1: access to attribute 'append'"),
        ("{{ range(999999999)|list|length }}", "prompt mine: user.jinja, line 1: OverflowError"),
        ("a\n{{ 1 / 0 }}", "prompt mine: user.jinja, line 2: ZeroDivisionError"),
        ("{{ lipsum() }}", "prompt mine: user.jinja, line 1: 'lipsum' is undefined"),
        ("{% include 'part.jinja' %}", "prompt mine: part.jinja, line 2: 'nothing' is undefined"),
    ],
)
def test_what_goes_wrong_while_rendering_is_said_with_its_line(template: str, said: str) -> None:
    prompt = Prompt("mine", {"user.jinja": template, "part.jinja": "a\n{{ nothing }}"})
    with pytest.raises(UserError) as raised:
        prompt.render("user.jinja", text="x", items=[1])
    assert str(raised.value).startswith(said)


def test_a_missing_template_and_a_missing_value_are_found_before_any_work() -> None:
    prompt = Prompt(
        "mine",
        {
            "user.jinja": "{{ text }}{% set x = 1 %}{{ x }}{{ range(2)|length }}{% include 'a.jinja' %}",
            "a.jinja": "{{ x }}",
        },
    )
    prompt.check("user.jinja", "text")
    with pytest.raises(
        UserError, match=r"prompt mine: user\.jinja, line \d: there is no text; this template is given segments"
    ):
        prompt.check("user.jinja", "segments")
    with pytest.raises(
        UserError, match=r"prompt mine: there is no template system\.jinja; it has a\.jinja, user\.jinja"
    ):
        prompt.check("system.jinja")
    with pytest.raises(UserError, match=r"there is no template system\.jinja"):
        prompt.render("system.jinja")


def test_what_is_no_prompt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompt nowhere: no such folder; shipped prompts are .*align"):
        load_prompt("nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no template"):
        load_prompt("empty", tmp_path)
    path = _folder(tmp_path / "latin", user="x")
    (path / "user.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"user\.jinja: not UTF-8"):
        load_prompt(str(path))
