"""What several formats look for in a record: the messages, a text, a time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pipeline.errors import Reason, Rejected
from pipeline.read.decode import decode
from pipeline.read.formats.build import Builder, dump

#: Where messages are usually found; the first that holds any is taken.
USUAL_FIELDS = ("messages", "conversations", "conversation")

#: When a message was recorded; the first that can be read as a time is taken.
TIME_FIELDS = ("timestamp", "created_at", "create_time", "time")

_MEDIA = frozenset({"image", "image_url", "input_image", "audio", "input_audio", "audio_url", "video", "video_url"}) | {
    "file",
    "input_file",
}

#: Fields of a message that hold what is no text. A conversation without it would not be the one that was recorded.
_MEDIA_FIELDS = frozenset(
    {"attachment", "attachments", "audio", "audio_url", "audios", "image", "image_url", "image_urls", "images"}
    | {"video", "video_url", "videos"}
)

#: Fields that are about a message, and say nothing themselves.
_BOOKKEEPING = frozenset(
    {"id", "message_id", "uuid", "parent_id", "index", "name", "type", "object", "status", "weight", "model", "usage"}
    | {"finish_reason", "stop_reason", "end_turn", "metadata"}
)


def find_messages(record: Any, field: str | None) -> Any:
    """What stands in ``field`` (a name or dotted path; None: the usual names); None if there is nothing."""
    if isinstance(record, list):
        return record if field is None else None
    if not isinstance(record, dict):
        return None
    if field is None:
        return _unpacked(next((record[name] for name in USUAL_FIELDS if record.get(name)), None))
    if field in record:
        return _unpacked(record[field])
    value: Any = record
    for name in field.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return _unpacked(value)


def _unpacked(messages: Any) -> Any:
    """Messages that a table holds as the JSON text of a list; anything else as it is."""
    if isinstance(messages, str) and messages.lstrip().startswith("[{"):
        try:
            return decode(messages.encode())
        except Rejected:
            return messages
    return messages


def take_messages(record: Any, field: str | None) -> tuple[Any, dict[str, Any]]:
    """The messages, and every other field of the record. Raises Rejected if there are none."""
    messages = find_messages(record, field)
    if not messages:
        where = f"field {field!r}" if field else "any of " + ", ".join(repr(name) for name in USUAL_FIELDS)
        raise Rejected(Reason.NO_MESSAGES, f"no messages in {where}; name it with --messages-field")
    if isinstance(record, list):
        return messages, {}
    if field is None:
        found = next(name for name in USUAL_FIELDS if record.get(name))
        return messages, {name: value for name, value in record.items() if name != found}
    return messages, _without(record, [field] if field in record else field.split("."))


def _without(record: dict[str, Any], path: list[str]) -> dict[str, Any]:
    rest = dict(record)
    if len(path) == 1:
        del rest[path[0]]
    else:
        rest[path[0]] = _without(record[path[0]], path[1:])
    return rest


def first_message(record: Any, field: str | None) -> dict[str, Any] | None:
    """The first message if it is an object: what a format is recognised by."""
    messages = find_messages(record, field)
    if isinstance(messages, list) and messages and isinstance(messages[0], dict):
        return messages[0]
    return None


def message_list(messages: Any) -> list[dict[str, Any]]:
    """``messages`` as a list of objects. Raises Rejected if it is anything else."""
    if not isinstance(messages, list):
        raise Rejected(Reason.NO_MESSAGES, f"the messages are {_kind(messages)}, not a list")
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise Rejected(Reason.UNSUPPORTED_CONTENT, f"message {number}: {_kind(message)}, not an object")
    return messages


def text_of(content: Any, number: int) -> str:
    """A message's text: a string, or a list of text parts joined. Raises Rejected for anything else."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join([_text_part(part, number) for part in content])
    raise Rejected(Reason.UNSUPPORTED_CONTENT, f"message {number}: its content is {_kind(content)}, not text")


def keep_rest(builder: Builder, number: int, message: dict[str, Any], known: frozenset[str], before: int) -> None:
    """Keep what a message says in fields that are not ``known``; ``before`` is how many parts there were before it.

    Raises Rejected where such a field is media, or where the message gave no part: what it says stands there then.
    """
    rest = {name: value for name, value in message.items() if name not in known and not _is_empty(value)}
    if not rest:
        return
    media = next((name for name in rest if name in _MEDIA_FIELDS), None)
    if media is not None:
        raise Rejected(Reason.UNSUPPORTED_CONTENT, f"message {number}: field {media!r}; only text can be read")
    said = [name for name in rest if name not in _BOOKKEEPING]
    if said and len(builder.parts) == before:
        names = ", ".join(map(repr, said))
        raise Rejected(
            Reason.UNSUPPORTED_CONTENT, f"message {number}: nothing in a known field, but something in {names}"
        )
    builder.keep(number, rest)


def _is_empty(value: Any) -> bool:
    """Nothing recorded: tables give every message all fields, down to empty ones inside empty ones."""
    if isinstance(value, dict):
        return all(map(_is_empty, value.values()))
    return value is None or value == "" or (isinstance(value, list) and all(map(_is_empty, value)))


def recorded_result(message: dict[str, Any], name: str, number: int) -> str:
    """The text of the tool result in a message's field ``name``. Raises Rejected if there is no such field."""
    if name not in message:
        raise Rejected(Reason.UNSUPPORTED_CONTENT, f"message {number}: a tool result without {name}")
    return result_text(message[name], number)


def result_text(content: Any, number: int) -> str:
    """The text of a tool result; what is neither a string nor text parts is its JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        kinds = {part.get("type") for part in content if isinstance(part.get("type"), str)}
        if kinds & _MEDIA or all(_is_text_part(part) for part in content):
            return text_of(content, number)
    return dump(content)


def _is_text_part(part: dict[str, Any]) -> bool:
    return isinstance(part.get("text"), str) and part.get("type", "text") in (
        "text",
        "input_text",
        "output_text",
    )


def _text_part(part: Any, number: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        if _is_text_part(part):
            text: str = part["text"]
            return text
        if part.get("type") == "refusal" and isinstance(part.get("refusal"), str):
            refusal: str = part["refusal"]
            return refusal
        raise Rejected(
            Reason.UNSUPPORTED_CONTENT,
            f"message {number}: content of type {part.get('type')!r}; only text can be read",
        )
    raise Rejected(Reason.UNSUPPORTED_CONTENT, f"message {number}: a content part is {_kind(part)}, not text")


def field_text(record: dict[str, Any], name: str) -> str:
    """The string in a field. Raises Rejected if it is anything else."""
    value = record.get(name)
    if isinstance(value, str):
        return value
    raise Rejected(Reason.UNSUPPORTED_CONTENT, f"field {name!r} is {_kind(value)}, not text")


def add_system(builder: Builder, record: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """Add a record's own system text as message 0. Returns the field it was in; None if there is none."""
    for name in names:
        text = record.get(name)
        if isinstance(text, str) and text:
            builder.add("system", text, 0)
            return name
    return None


def seconds_of(message: dict[str, Any]) -> float | None:
    """When a message was recorded, in seconds; None if it does not say, or not in a way that can be read.

    Numbers are seconds, or milli-, micro- or nanoseconds where they would otherwise lie beyond the year 5000;
    strings are such numbers or ISO 8601 (UTC where they name no zone).
    """
    for name in TIME_FIELDS:
        value = message.get(name)
        if value is None or isinstance(value, bool):
            continue
        if isinstance(value, str):
            value = _seconds_of_text(value)
        if isinstance(value, int | float) and abs(value) < 1e20:
            seconds = float(value)
            while abs(seconds) > 1e11:
                seconds /= 1000
            return seconds
    return None


def _seconds_of_text(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _kind(value: Any) -> str:
    if value is None:
        return "null or missing"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")
