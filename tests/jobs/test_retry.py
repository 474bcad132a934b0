"""``pipeline retry`` gives the dataset that a fresh run would give now."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import Made, assert_same, contents, pipeline, write_lines

from pipeline import convert
from pipeline.errors import Reason, Rejected
from pipeline.store.place import Place


@pytest.fixture
def rejected(small: Made, tmp_path: Path) -> str:
    """A dataset made by a version that could not read every seventh record."""
    read = convert.read_conversation

    def older(raw: bytes, *options: object) -> object:
        if b"Question 7:" in raw or b"Question 23:" in raw:
            raise Rejected(Reason.UNSUPPORTED_CONTENT, "not yet")
        return read(raw, *options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "read_conversation", older)
        ran = pipeline(*small.options, "--out", tmp_path / "out", "--ray", "off")
    assert ran.code == 0 and "6 unsupported_content" in ran.output
    assert contents(tmp_path / "out") != small.contents
    return str(tmp_path / "out")


def test_a_reason_that_has_gone(small: Made, rejected: str) -> None:
    ran = pipeline("retry", rejected, "--ray", "off")
    assert ran.code == 0, ran.output
    assert "2 of 12 shards were there already" in ran.output
    # Of the corpus's own broken records each of the two line files has two; the six are recovered.
    assert "Recovered 6 of 10 in quarantine." in ran.output
    assert_same(Path(rejected), small.contents)


def test_it_can_be_stopped_and_goes_on(small: Made, rejected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of its writes, one after another; what goes on is the same command."""
    put = Place.put
    left = 0

    def stopping(self: Place, name: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        put(self, name, data)

    monkeypatch.setattr(Place, "put", stopping)
    stops = 0
    while True:
        left = 9 + stops % 3
        code = pipeline("retry", rejected, "--ray", "off").code
        if code == 0:
            break
        assert code == 130
        stops += 1
    assert stops > 2
    assert_same(Path(rejected), small.contents)


def test_nothing_in_quarantine(tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "chats.jsonl", 5)
    assert pipeline("convert", "--input", corpus, "--out", tmp_path / "out", "--ray", "off").code == 0
    before = contents(tmp_path / "out")
    ran = pipeline("retry", tmp_path / "out", "--ray", "off")
    assert ran.code == 2 and "nothing is in quarantine" in ran.output
    assert contents(tmp_path / "out") == before


def test_what_is_still_bad_stays_in_quarantine(small: Made, tmp_path: Path) -> None:
    assert pipeline(*small.options, "--out", tmp_path / "out", "--ray", "off").code == 0
    ran = pipeline("retry", tmp_path / "out", "--ray", "off")
    assert ran.code == 0
    assert "Nothing was recovered: the 4 records in quarantine still cannot be converted" in ran.output
    assert_same(tmp_path / "out", small.contents)


def test_only_a_retry_speaks_of_recovery(rejected: str, small: Made) -> None:
    ran = pipeline(*small.options, "--out", rejected, "--ray", "off")
    assert ran.code == 0 and "ecovered" not in ran.output


def test_what_was_recovered_is_said_by_a_retry_that_goes_on_too(
    small: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest, which counted the quarantine, is gone by then."""
    out = tmp_path / "out"
    assert pipeline(*small.options, "--out", out, "--ray", "off").code == 0
    put, left = Place.put, 12

    def stopping(self: Place, name: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        put(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "put", stopping)
        assert pipeline("retry", out, "--ray", "off").code == 130
    assert not (out / "dataset.json").exists()
    ran = pipeline("retry", out, "--ray", "off")
    assert ran.code == 0 and "Nothing was recovered: the 4 records in quarantine still" in ran.output
    assert_same(out, small.contents)


def test_no_dataset(tmp_path: Path) -> None:
    ran = pipeline("retry", tmp_path / "nothing", "--ray", "off")
    assert ran.code == 2 and "no finished dataset to retry" in ran.output


def test_an_input_that_has_changed_is_named(tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "chats.jsonl", 20, bad=7)
    assert pipeline("convert", "--input", corpus, "--out", tmp_path / "out", "--ray", "off").code == 0
    before = contents(tmp_path / "out")
    write_lines(corpus, 20, bad=5)
    ran = pipeline("retry", tmp_path / "out", "--ray", "off")
    assert ran.code == 2 and "inputs.chats.jsonl: " in ran.output
    assert contents(tmp_path / "out") == before
    corpus.unlink()
    ran = pipeline("retry", tmp_path / "out", "--ray", "off")
    assert ran.code == 2 and "no such file" in ran.output
    assert contents(tmp_path / "out") == before
