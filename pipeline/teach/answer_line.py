"""One line of the answer store: a question in full, its key, and the answer.

    {"key":"…","model":"…","revision":null,"request":{…},"answer":{…},"crc32":"…"}

The key is the SHA-256 of ``{"model":…,"revision":…,"request":…}`` exactly as it stands in the line, so anyone can check
it. An answer is ``unconstrained`` where the engine was not told the request's constraint, because it knows none of that
kind. Whatever is empty in a request is left out: a kind of request that comes later changes no key. The order inside
constraints is kept, because a model writes the fields of an object in the order of its schema.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from typing import Any, NamedTuple

import msgspec

from pipeline.engines.protocol import Answer, Model, Request

#: The finish reason of what an engine will never answer: the text says why. It is kept like an answer, because whether a
#: conversation is planned hangs on it.
REFUSED = "refused"

_KEY = re.compile(rb'\{"key":"([0-9a-f]{64})","model":')


class Question(NamedTuple):
    """A request to a certain model, as the store knows it."""

    #: In hex.
    key: str
    #: What the key is the hash of.
    document: bytes


def question(model: Model, request: Request) -> Question:
    """The question that ``request`` is to ``model``."""
    filled = {name: value for name, value in msgspec.to_builtins(request).items() if value not in (None, (), [], {})}
    document = _json({"model": model.name, "revision": model.revision, "request": filled})
    return Question(hashlib.sha256(document).hexdigest(), document)


def write_line(asked: Question, answer: Answer) -> bytes:
    """The line of an answer, line break included."""
    line = b'{"key":"%s",%s,"answer":%s' % (
        asked.key.encode(),
        asked.document[1:-1],
        _json({name: value for name, value in msgspec.to_builtins(answer).items() if value is not False}),
    )
    return b'%s,"crc32":"%08x"}\n' % (line, zlib.crc32(line))


def key_of(line: bytes) -> bytes | None:
    """The key of a line without its line break, read as fast as can be; None where this is no such line."""
    match = _KEY.match(line)
    return bytes.fromhex(match[1].decode()) if match and line.endswith(b'"}') else None


class _Line(msgspec.Struct):
    key: str
    model: msgspec.Raw
    revision: msgspec.Raw
    request: msgspec.Raw
    answer: Answer
    crc32: str


_decoder = msgspec.json.Decoder(_Line)


def read_line(line: bytes) -> Answer:
    """The answer in a line without its line break. Raises ValueError saying what is wrong with the line."""
    read = _decoder.decode(line)
    document = b'{"model":%s,"revision":%s,"request":%s}' % (
        bytes(read.model),
        bytes(read.revision),
        bytes(read.request),
    )
    if hashlib.sha256(document).hexdigest() != read.key:
        raise ValueError("its key is not the hash of its request")
    if f"{zlib.crc32(line[: line.rindex(b',')]):08x}" != read.crc32:
        raise ValueError("it has been changed: the check sum is not that of the line")
    return read.answer


def _json(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
