"""Collects the parts of one conversation: think tags, calls, and which result answers which call."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from pipeline.errors import Reason, Rejected
from pipeline.read.conversation import Conversation, Part, Role

OPEN, CLOSE = "<think>", "</think>"

#: JSON as it is stored: recorded key order, no spaces, no ASCII escapes, integers exact.
dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Builder:
    """Parts in the order in which they are added. Methods take the recorded message's number and time."""

    __slots__ = ("_calls", "_kept", "parts")

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._calls: _Calls | None = None
        self._kept: dict[str, dict[str, Any]] = {}

    def add(self, role: Role, text: str, message: int, seconds: float | None = None) -> None:
        """One text, as it is."""
        self.parts.append(Part(role, text, message, -1, None, seconds))

    def answer(self, text: str, message: int, seconds: float | None = None) -> None:
        """An answer, in which ``<think>…</think>`` becomes think parts.

        A first tag that closes ends a thought that began with the text: many chat templates write the opening tag
        themselves. A thought that begins the text and is never closed was cut short: all of it is thought. Any other
        tag without its partner is text.
        """
        begin = text.find(OPEN)
        close = text.find(CLOSE)
        if begin < 0 and close < 0:
            self.parts.append(Part("answer", text, message, -1, None, seconds))
            return
        done = 0
        if close >= 0 and (begin < 0 or close < begin):
            if close:
                self.add("think", text[:close], message, seconds)
            done = close + len(CLOSE)
        elif close < 0 and begin == 0 and len(text) > len(OPEN):
            self.add("think", text[len(OPEN) :], message, seconds)
            return
        while begin >= 0:
            end = text.find(CLOSE, begin)
            if end < 0:
                break
            if begin > done:
                self.add("answer", text[done:begin], message, seconds)
            if end > begin + len(OPEN):
                self.add("think", text[begin + len(OPEN) : end], message, seconds)
            done = end + len(CLOSE)
            begin = text.find(OPEN, done)
        if done < len(text):
            self.add("answer", text[done:], message, seconds)

    def call(self, name: Any, arguments: Any, message: int, seconds: float | None = None, call_id: Any = None) -> None:
        """A tool call. ``arguments`` is any JSON value; a string stays that string."""
        if not isinstance(name, str) or not name:
            raise Rejected(Reason.UNSUPPORTED_CONTENT, f"message {message}: a tool call without a name")
        if self._calls is None:
            self._calls = _Calls()
        self._calls.add(len(self.parts), name, call_id)
        text = f'{{"name":{dump(name)},"arguments":{dump(arguments)}}}'
        self.parts.append(Part("call", text, message, -1, name, seconds))

    def result(
        self, text: str, message: int, seconds: float | None = None, call_id: Any = None, name: Any = None
    ) -> None:
        """A tool's result: for the call with that id, else the oldest open one, if possible of that name."""
        call = self._calls.answered_by(call_id, name) if self._calls is not None else None
        if call is None:
            said = f"id {call_id!r}" if call_id else "no id"
            raise Rejected(
                Reason.RESULT_WITHOUT_CALL,
                f"message {message}: a tool result with {said} that answers no earlier call",
            )
        self.parts.append(Part("result", text, message, call, None, seconds))

    def keep(self, message: int, fields: dict[str, Any]) -> None:
        """Fields of a message that no part takes: they go to the meta."""
        self._kept.setdefault(str(message), {}).update(fields)

    def conversation(self, meta: dict[str, Any]) -> Conversation:
        """The finished conversation. Raises Rejected if nothing was recorded."""
        if not self.parts:
            raise Rejected(Reason.NO_MESSAGES, "no message has any text or call")
        if self._kept:
            key = "message_fields"
            while key in meta:  # what the record itself says there stays
                key = f"_{key}"
            meta = {**meta, key: self._kept}
        return Conversation(self.parts, meta)


class _Calls:
    """Calls by id and by name, and which are still open. Time is linear, however many stay open."""

    def __init__(self) -> None:
        self._by_id: dict[Any, deque[int]] = {}
        self._by_name: dict[str, deque[int]] = {}
        self._all: deque[int] = deque()
        self._answered: set[int] = set()

    def add(self, part: int, name: str, call_id: Any) -> None:
        if isinstance(call_id, str | int) and call_id != "":
            self._by_id.setdefault(call_id, deque()).append(part)
        self._by_name.setdefault(name, deque()).append(part)
        self._all.append(part)

    def answered_by(self, call_id: Any, name: Any) -> int | None:
        if call_id is not None and call_id != "":
            same = self._by_id.get(call_id) if isinstance(call_id, str | int) else None
            if same is None:
                return None
            # An id may come again in a later turn; when all its calls are answered, the last gets a second
            # result.
            last = same[-1]
            part = self._oldest(same)
            if part is None:
                same.append(last)
                part = last
        else:
            part = self._oldest(self._by_name.get(name)) if isinstance(name, str) else None
            if part is None:
                part = self._oldest(self._all)
        if part is not None:
            self._answered.add(part)
        return part

    def _oldest(self, parts: deque[int] | None) -> int | None:
        while parts and parts[0] in self._answered:
            parts.popleft()
        return parts[0] if parts else None
