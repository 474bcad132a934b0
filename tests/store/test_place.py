"""A place gives back the bytes that were put there, whatever the file is called."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import zstandard

from pipeline.errors import UserError
from pipeline.store.place import Place


@pytest.fixture(params=["path", "url"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(str(tmp_path) if request.param == "path" else f"file://{tmp_path}")


def test_a_compressed_file_is_stored_and_read_as_it_is(place: Place) -> None:
    """pyarrow would unpack a file whose name ends in .zst, and hash what it unpacked."""
    data = zstandard.compress(b"line\n")
    place.put("plans/part-00000.jsonl.zst", data)
    assert place.get("plans/part-00000.jsonl.zst") == data
    assert place.sha256("plans/part-00000.jsonl.zst") == hashlib.sha256(data).hexdigest()


def test_an_object_store_stores_a_compressed_file_as_it_is() -> None:
    place = Place("mock://bucket/dataset")
    data = zstandard.compress(b"line\n")
    place._fs.create_dir(place.path("plans"))
    place.put("plans/part-00000.jsonl.zst", data)
    assert place.get("plans/part-00000.jsonl.zst") == data


def test_what_is_not_there_is_none(place: Place) -> None:
    assert place.get("dataset.json") is None
    assert place.sha256("dataset.json") is None
    assert place.names("data") == []
    place.delete("dataset.json")


def test_a_file_is_replaced_whole_and_leaves_no_temporary_file(place: Place) -> None:
    place.put("data/a", b"one")
    place.put("data/a", b"two")
    assert place.get("data/a") == b"two"
    assert place.names() == ["data/a"]


def test_a_pickled_place_is_the_same_place(place: Place) -> None:
    place.put("a", b"1")
    assert pickle.loads(pickle.dumps(place)).get("a") == b"1"


def test_a_second_run_is_kept_away(place: Place) -> None:
    with place.lock(), pytest.raises(UserError, match="another run"), Place(place.location).lock():
        pass


def test_an_unknown_kind_of_url_is_a_user_error() -> None:
    with pytest.raises(UserError, match="nonsense://"):
        Place("nonsense://x")
