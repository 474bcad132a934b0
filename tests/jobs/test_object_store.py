"""Reading from and writing to an object store: a real client against a server on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from running import Made, pipeline

import pipeline as package
from pipeline.store.place import Place

server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server with a bucket, and the credentials for it in the environment, as a user has them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        running.start()
        host, port = running.get_host_and_port()
        where = f"{host}:{port}"
        pafs.S3FileSystem(endpoint_override=where, scheme="http", allow_bucket_creation=True).create_dir("bucket")
        yield where
        running.stop()


def _url(endpoint: str, path: str) -> str:
    return f"s3://bucket/{path}?scheme=http&endpoint_override={endpoint}"


def _stored(url: str) -> dict[str, bytes]:
    place = Place(url)
    return {name: place.get(name) or b"" for name in place.names() if name != "run.json"}


def test_the_same_bytes_as_on_a_disk(small: Made, endpoint: str) -> None:
    out = _url(endpoint, "grids")
    ran = pipeline(*small.options, "--out", out, "--ray", "off")
    assert ran.code == 0, ran.output
    assert _stored(out) == small.contents
    place = Place(out)
    assert place._fs.get_file_info(place.path("_work")).type == pafs.FileType.NotFound
    opened = package.open_dataset(out)
    assert len(opened) == 116 and opened[0].dense().shape[1] == 3
    ran = pipeline(*small.options, "--out", out, "--ray", "off")
    assert ran.code == 0 and "nothing to do" in ran.output


def test_it_resumes(small: Made, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after a part is there and before its commit is: the part alone counts for nothing."""
    command = [*small.options, "--out", _url(endpoint, "resumed"), "--ray", "off"]
    put = Place.put

    def stopping(self: Place, name: str, data: bytes) -> None:
        if name.startswith("_work/commits/part-00005"):
            raise KeyboardInterrupt
        put(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "put", stopping)
        assert pipeline(*command).code == 130
    ran = pipeline(*command)
    assert ran.code == 0 and "5 of 12 shards were there already" in ran.output
    assert _stored(command[-3]) == small.contents
    ran = pipeline(*command, "--set", "k=5")
    assert ran.code == 2 and "recipe.options.k: " in ran.output
    assert pipeline(*command, "--set", "k=5", "--fresh").code == 0
    assert _stored(command[-3]) != small.contents


@pytest.mark.ray
def test_ray_workers_write_there(small: Made, endpoint: str) -> None:
    out = _url(endpoint, "ray")
    ran = pipeline(*small.options, "--out", out, "--ray", "local", "--workers", "2")
    assert ran.code == 0, ran.output
    assert _stored(out) == small.contents


def test_input_from_there(small: Made, endpoint: str, tmp_path: Path) -> None:
    """The same bytes as from a disk: the dataset does not know where its input was."""
    corpus = Path(small.options[2])
    store = Place(_url(endpoint, "corpus"))
    for file in corpus.iterdir():
        store.put(file.name, file.read_bytes())
    options = ["convert", "--input", store.location, *small.options[3:], "--ray", "off"]
    ran = pipeline(*options, "--out", tmp_path / "out")
    assert ran.code == 0, ran.output
    assert _stored(str(tmp_path / "out")) == small.contents


def test_credentials_are_shown_nowhere(small: Made, endpoint: str, tmp_path: Path) -> None:
    out = f"s3://testing:hunter2@bucket/secret?scheme=http&endpoint_override={endpoint}"
    ran = pipeline(*small.options, "--out", out, "--ray", "off")
    assert ran.code == 0 and "hunter2" not in ran.output
    assert b"hunter2" not in (Place(out).get("run.json") or b"")
    ran = pipeline(*small.options, "--out", out, "--ray", "off", "--set", "k=5")
    assert ran.code == 2 and "hunter2" not in ran.output
    ran = pipeline(*small.options, "--out", tmp_path / "out", "--plans", out, "--ray", "off")
    assert ran.code == 0 and "hunter2" not in Path(tmp_path, "out", "run.json").read_text()


def test_a_bucket_that_is_not_there(small: Made, endpoint: str) -> None:
    out = _url(endpoint, "grids").replace("bucket", "nobucket")
    ran = pipeline(*small.options, "--out", out, "--ray", "off")
    assert ran.code == 2 and "nobucket" in ran.output
