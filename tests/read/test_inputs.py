"""Inputs: what a file, directory, glob or URL stands for, and how its files are named."""

import os
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.location import redact
from pipeline.read import inputs
from pipeline.read.inputs import open_input, resolve_inputs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ["b.jsonl", "a.json.gz", "sub/c.parquet.zst", "sub/b.jsonl", "sub/deep/d e%20f.ndjson"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    for name in ["notes.txt", ".hidden.jsonl", ".git/x.jsonl", "sub/README.md"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    return tmp_path


ALL = ["a.json.gz", "b.jsonl", "sub/b.jsonl", "sub/c.parquet.zst", "sub/deep/d e%20f.ndjson"]


def names(*specs: object) -> list[str]:
    return [file.name for file in resolve_inputs([str(spec) for spec in specs])]


@pytest.fixture(params=["path", "url"])
def root(request: pytest.FixtureRequest, tree: Path) -> str:
    return str(tree) if request.param == "path" else "file://" + quote(str(tree))


def test_directories(root: str) -> None:
    files = resolve_inputs([root])
    assert [file.name for file in files] == ALL
    for file in files:
        assert file.size == len(file.name)
        with open_input(file.location) as stream:
            assert stream.read(1000) == file.name.encode()


def test_files(root: str) -> None:
    assert names(f"{root}/sub/b.jsonl") == ["b.jsonl"]
    assert names(f"{root}/notes.txt") == ["notes.txt"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jsonl", ["b.jsonl"]),
        ("*", ["a.json.gz", "b.jsonl"]),
        ("**/*.jsonl", ["b.jsonl", "sub/b.jsonl"]),
        ("sub/*", ["b.jsonl", "c.parquet.zst"]),
        ("sub/**", ["b.jsonl", "c.parquet.zst", "deep/d e%20f.ndjson"]),
        ("s*/[bc].*", ["sub/b.jsonl", "sub/c.parquet.zst"]),
        ("*.txt", ["notes.txt"]),
    ],
)
def test_globs(root: str, pattern: str, found: list[str]) -> None:
    assert names(f"{root}/{pattern}") == found


def test_order_and_repetition_do_not_matter(tree: Path) -> None:
    specs = [str(tree), str(tree / "sub"), str(tree / "b.jsonl"), f"{tree}/**/*.jsonl"]
    assert resolve_inputs(specs) == resolve_inputs(specs[::-1] * 2)
    assert len(resolve_inputs(specs)) == len(ALL)


def test_a_link_to_a_read_file_is_read_once(tree: Path) -> None:
    (tree / "again.jsonl").symlink_to(tree / "b.jsonl")
    (tree / "loop").symlink_to(tree)
    assert len(resolve_inputs([str(tree)])) == len(ALL)


def test_different_files_of_one_name_are_told_apart(tree: Path) -> None:
    assert names(tree / "b.jsonl", tree / "sub/b.jsonl") == ["sub/b.jsonl", f"{tree.name}/b.jsonl"]


def test_names_do_not_depend_on_the_working_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "sub")
    assert names("..") == ALL
    assert names("*.jsonl") == ["b.jsonl"]
    assert resolve_inputs(["b.jsonl"])[0].location == str(tree / "sub/b.jsonl")


def test_a_file_whose_name_looks_like_a_glob(tree: Path) -> None:
    (tree / "x[1].jsonl").write_bytes(b"{}")
    assert names(tree / "x[1].jsonl") == ["x[1].jsonl"]


@pytest.mark.parametrize("spec", ["missing", "missing.jsonl", "*.nothing", "sub/deep/none*"])
def test_nothing_found_names_the_spec(root: str, spec: str) -> None:
    with pytest.raises(UserError, match=spec.replace("*", r"\*")):
        resolve_inputs([f"{root}/{spec}"])


def test_an_empty_directory_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.jsonl"):
        resolve_inputs([str(tmp_path)])
    with pytest.raises(UserError, match="--input"):
        resolve_inputs([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions(tree: Path) -> None:
    (tree / "b.jsonl").chmod(0)
    with pytest.raises(UserError, match=r"b\.jsonl: permission denied"):
        resolve_inputs([str(tree)])
    (tree / "b.jsonl").chmod(0o600)
    (tree / "sub").chmod(0)
    with pytest.raises(UserError, match="sub: permission denied"):
        resolve_inputs([str(tree)])
    (tree / "sub").chmod(0o700)


def test_an_unreadable_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="permission denied"):
        resolve_inputs([str(tree)])


def test_urls_of_unknown_kind() -> None:
    with pytest.raises(UserError, match="gopher://host/x"):
        resolve_inputs(["gopher://user:secret@host/x"])


def test_credentials_are_never_shown() -> None:
    url = "s3://key:secret@bucket/a/b.jsonl?endpoint_override=localhost%3A1&scheme=http&access_key=x&token=y"
    assert redact(url) == "s3://bucket/a/b.jsonl?endpoint_override=localhost:1&scheme=http"
    assert inputs._below("s3://key:secret@bucket/a?region=x", "b c.jsonl") == (
        "s3://key:secret@bucket/a/b%20c.jsonl?region=x"
    )
    with pytest.raises(UserError) as caught:
        resolve_inputs(["gopher://user:secret@host/x"])
    assert "secret" not in str(caught.value)


parts = st.sampled_from(["a", "b", "ab"])


@given(
    st.lists(parts, min_size=1, max_size=3),
    st.lists(st.sampled_from(["a", "b", "*", "**", "?"]), min_size=1, max_size=3),
)
def test_url_globs_agree_with_a_simple_definition(path: list[str], pattern: list[str]) -> None:
    import re

    text = "/".join(path) + "/"
    regex = "".join(
        "(?:[^/]+/)*" if part == "**" else part.replace("*", "[^/]*").replace("?", "[^/]") + "/" for part in pattern
    )
    assert inputs._fits(path, pattern) == bool(re.fullmatch(regex, text))
