"""The answer store in one process: what is kept, what is read again, and what is wrong with a file."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.protocol import Answer, Constraint, Message, Model, Request, Sampling
from pipeline.errors import UserError
from pipeline.teach.answer_line import Question, question, read_line, write_line
from pipeline.teach.answers import AnswerStore

MODEL = Model("model", "abc")


def asked(text: str) -> Question:
    return question(MODEL, Request((Message("user", text),)))


def said(text: str) -> Answer:
    return Answer(text, "stop", 7, 5, 3)


def with_store(folder: Path, work: Callable[[AnswerStore], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        store = AnswerStore(str(folder))
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def keep(folder: Path, **answers: str) -> None:
    async def work(store: AnswerStore) -> None:
        for name, text in answers.items():
            await store.keep(asked(name), said(text))

    with_store(folder, work)


def read(folder: Path, *names: str) -> tuple[list[str | None], list[str]]:
    """The texts of answers, and the faults that were found."""

    async def work(store: AnswerStore) -> tuple[list[str | None], list[str]]:
        found = [await store.find(asked(name)) for name in names]
        return [answer and answer.text for answer in found], [str(fault) for fault in store.faults]

    result: tuple[list[str | None], list[str]] = with_store(folder, work)
    return result


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def _is_answers(handle: int) -> bool:
    """Whether an open file is one of answers."""
    return Path(f"/proc/self/fd/{handle}").readlink().suffix == ".jsonl"


_TEXTS = st.text(max_size=40)


@given(_TEXTS, _TEXTS, st.integers(0, 1 << 40), st.dictionaries(_TEXTS, st.integers() | _TEXTS, max_size=3))
def test_a_line_holds_the_question_in_full_and_the_answer(content: str, text: str, count: int, schema: Any) -> None:
    request = Request((Message("user", content),), (), Sampling(0.3, 0.9, 10, 4), Constraint("json", schema))
    answer = Answer(text, "length", count, count, 0)
    line = write_line(question(MODEL, request), answer)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert read_line(line[:-1]) == answer
    document = json.loads(line)
    assert document["model"] == "model" and document["revision"] == "abc"
    assert document["request"]["messages"] == [{"role": "user", "content": content}]
    assert document["request"]["constraint"] == {"kind": "json", "value": schema}
    assert document["request"]["sampling"] == {"temperature": 0.3, "top_p": 0.9, "max_tokens": 10, "seed": 4}
    # Anyone can check the key with nothing but a hash.
    between = line[line.index(b'"model"') : line.rindex(b',"answer":')]
    assert document["key"] == hashlib.sha256(b"{" + between + b"}").hexdigest()


def test_everything_in_a_request_makes_it_another_question() -> None:
    base = Request((Message("user", "a"),))
    requests = [
        base,
        Request((Message("system", "a"),)),
        Request((Message("user", "a"), Message("user", ""))),
        Request((), (1, 2)),
        Request(base.messages, (), Sampling(temperature=0.1)),
        Request(base.messages, (), Sampling(seed=1)),
        Request(base.messages, (), Sampling(max_tokens=1)),
        Request(base.messages, (), Sampling(), Constraint("regex", "a")),
        Request(base.messages, (), Sampling(), Constraint("grammar", "a")),
        Request(base.messages, (), Sampling(), Constraint("json", {"a": 1, "b": 2})),
        Request(base.messages, (), Sampling(), Constraint("json", {"b": 2, "a": 1})),
        Request(base.messages, template={"enable_thinking": False}),
    ]
    models = [Model("m"), Model("m", "1"), Model("n")]
    keys = {question(model, request).key for model in models for request in requests}
    assert len(keys) == len(models) * len(requests)
    assert question(Model("m", "1", 4096), base) == question(Model("m", "1"), base), "the context is no part of it"


def test_an_answer_can_be_read_again(tmp_path: Path) -> None:
    keep(tmp_path / "store", a="first", b="second")
    assert read(tmp_path / "store", "a", "b", "c") == (["first", "second", None], [])


def test_the_first_answer_wins(tmp_path: Path) -> None:
    async def work(one: AnswerStore) -> None:
        other = AnswerStore(str(tmp_path))
        assert await one.keep(asked("a"), said("first")) == said("first")
        assert await one.keep(asked("a"), said("second")) == said("first")
        assert await other.keep(asked("a"), said("third")) == said("first")
        assert await other.find(asked("a")) == said("first")
        # Two in one batch.
        both = await asyncio.gather(other.keep(asked("b"), said("x")), other.keep(asked("b"), said("y")))
        assert both == [said("x"), said("x")]
        await other.close()

    with_store(tmp_path, work)
    assert sum(path.read_bytes().count(b"\n") for path in files(tmp_path)) == 2


def test_what_another_process_has_written_since_is_found(tmp_path: Path) -> None:
    """Stores of one process stand for processes: they share nothing but the directory."""

    async def work(one: AnswerStore) -> None:
        assert await one.find(asked("a")) is None
        other = AnswerStore(str(tmp_path))
        await other.keep(asked("a"), said("first"))
        assert await one.find(asked("a")) == said("first")
        await other.keep(asked("b"), said("second"))
        assert await one.find(asked("b")) == said("second")
        await other.close()

    with_store(tmp_path, work)


def test_what_a_dying_process_had_not_synced_is_synced_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink().name))

    async def work(one: AnswerStore) -> None:
        other = AnswerStore(str(tmp_path))
        await other.keep(asked("a"), said("first"))
        assert await one.find(asked("a")) == said("first")
        await other.keep(asked("b"), said("second"))
        synced.clear()
        assert await one.find(asked("b")) == said("second")
        assert synced == [], "it was on the disk already"
        # As left by a process that was killed between writing and syncing.
        name = f"answers-{'0' * 32}.jsonl"
        (tmp_path / name).write_bytes(write_line(asked("c"), said("third")))
        with (tmp_path / "journal").open("ab") as stream:
            stream.write(f"\n{name}\n".encode())
        assert await one.find(asked("c")) == said("third")
        assert synced == [name]
        await other.close()

    with_store(tmp_path, work)


def test_a_journal_that_was_begun_anew_or_deleted_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.teach.answers._JOURNAL_BYTES", 100)

    async def work(one: AnswerStore) -> None:
        other = AnswerStore(str(tmp_path))
        for number in range(10):
            await one.keep(asked(f"one {number}"), said("1"))
            for more in range(number):
                await other.keep(asked(f"other {number} {more}"), said("2"))
            for more in range(number):
                assert await one.find(asked(f"other {number} {more}")) == said("2")
            if number == 5:
                (tmp_path / "journal").unlink()
        assert (tmp_path / "journal").stat().st_size < 400
        await other.close()

    with_store(tmp_path, work)


def test_an_answer_is_on_the_disk_before_it_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a sync is under way nobody is given the answer; many that wait share one sync."""
    real, syncs = os.fsync, []

    def slow(handle: int) -> None:
        if _is_answers(handle):
            time.sleep(0.05)
            syncs.append([store.known(asked(f"{n}")) for n in range(200)])
        real(handle)

    store = AnswerStore(str(tmp_path))

    async def run() -> None:
        kept = await asyncio.gather(*(store.keep(asked(f"{n}"), said(f"{n}")) for n in range(200)))
        assert kept == [said(f"{n}") for n in range(200)]
        await store.close()

    monkeypatch.setattr(os, "fsync", slow)
    asyncio.run(run())
    assert 1 <= len(syncs) <= 2
    assert syncs[0] == [None] * 200


def test_the_event_loop_goes_on_during_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(store: AnswerStore) -> None:
        monkeypatch.setattr(os, "fsync", lambda handle: time.sleep(0.3))
        waiting = asyncio.create_task(store.keep(asked("a"), said("x")))
        began, turns = time.monotonic(), 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 10 and time.monotonic() - began >= 0.3

    with_store(tmp_path, work)


def test_a_torn_last_line_is_no_answer_and_spoils_nothing(tmp_path: Path) -> None:
    keep(tmp_path, a="first", b="second")
    [path] = files(tmp_path)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (first, first + 1, first + 40, first + 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert read(tmp_path, "a", "b") == (["first", None], [])
    keep(tmp_path, b="third", c="fourth")
    assert len(files(tmp_path)) == 2, "a file is appended to by its own process alone"
    assert read(tmp_path, "a", "b", "c") == (["first", "third", "fourth"], [])


def _overwrite(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"second", b"sec\0nd", "JSON"),
        (b"second", b"secund", "check sum"),
        (b'"content":"b"', b'"content":"B"', "its key is not the hash of its request"),
        (b'"revision":"abc"', b'"revision":"abd"', "its key is not the hash of its request"),
        (b'"output_tokens":5', b'"output_tokens":"', "Expected `int`"),
    ],
)
def test_a_line_that_was_changed_is_reported_and_asked_again(
    tmp_path: Path, old: bytes, new: bytes, message: str
) -> None:
    keep(tmp_path, a="first")
    keep(tmp_path, b="second")
    keep(tmp_path, c="third")
    [path] = [path for path in files(tmp_path) if b"second" in path.read_bytes()]
    _overwrite(path, old, new)
    texts, faults = read(tmp_path, "a", "b", "c")
    assert texts == ["first", None, "third"]
    assert len(faults) == 1 and f"{path}: line 1: " in faults[0] and message in faults[0]
    keep(tmp_path, b="again")
    assert read(tmp_path, "b")[0] == ["again"], "in whatever order the files are read"


def test_a_line_that_is_no_answer_is_reported_with_its_number(tmp_path: Path) -> None:
    keep(tmp_path, a="first", b="second", c="third")
    [path] = files(tmp_path)
    lines = path.read_bytes().split(b"\n")
    lines[1] = b"\0" * 50
    lines.insert(1, b'{"some": "thing"}')
    path.write_bytes(b"\n".join(lines))
    texts, faults = read(tmp_path, "a", "b", "c")
    assert texts == ["first", None, "third"]
    assert faults == [f"{path}: line 2: not an answer", f"{path}: line 3: not an answer"]


def test_faults_are_counted_but_not_hoarded(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text("{}\n" * 5000)
    store = AnswerStore(str(tmp_path))
    assert (store.fault_count, len(store.faults)) == (5000, 100)


def test_copied_and_merged_files_are_a_store(tmp_path: Path) -> None:
    keep(tmp_path / "one", a="first", b="second")
    keep(tmp_path / "two", c="third")
    (tmp_path / "both").mkdir()
    for number, path in enumerate([*files(tmp_path / "one"), *files(tmp_path / "two")]):
        (tmp_path / "both" / f"copy-{number}.jsonl").write_bytes(path.read_bytes())
    assert read(tmp_path / "both", "a", "b", "c") == (["first", "second", "third"], [])


def test_a_full_disk_is_said_and_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    full = False

    def write(handle: int, data: Any) -> int:
        if full and _is_answers(handle):
            if len(data) < 100:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(handle, data[: len(data) // 2])
        return real(handle, data)

    monkeypatch.setattr(os, "write", write)

    async def work(store: AnswerStore) -> None:
        nonlocal full
        other = AnswerStore(str(tmp_path))
        await store.keep(asked("a"), said("first"))
        full = True
        for _ in range(2):
            with pytest.raises(UserError, match=r"--answers .*the disk is full\. Free some space"):
                await asyncio.gather(store.keep(asked("b"), said("second")), store.keep(asked("c"), said("third")))
            assert await store.find(asked("b")) is None
            assert await other.find(asked("b")) is None
        full = False
        await store.keep(asked("b"), said("fourth"))
        assert await other.find(asked("b")) == said("fourth")
        await other.close()

    with_store(tmp_path, work)
    assert read(tmp_path, "a", "b", "c") == (["first", "fourth", None], [])


def test_a_text_that_no_file_can_hold_costs_nothing_but_itself(tmp_path: Path) -> None:
    async def work(store: AnswerStore) -> None:
        bad, good = await asyncio.gather(
            store.keep(asked("a"), said("\ud800")), store.keep(asked("b"), said("fine")), return_exceptions=True
        )
        assert isinstance(bad, UnicodeEncodeError)
        assert good == said("fine")

    with_store(tmp_path, work)


def test_whoever_stops_waiting_stops_nobody(tmp_path: Path) -> None:
    async def work(store: AnswerStore) -> None:
        tasks = [asyncio.create_task(store.keep(asked(f"{n}"), said(f"{n}"))) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(each, asyncio.CancelledError) for each in done] == [True, False] * 10
        assert await store.keep(asked("later"), said("later")) == said("later")

    with_store(tmp_path, work)


@pytest.mark.parametrize("location", ["s3://bucket/answers", "gs://user:secret@bucket/a", "http://host/x"])
def test_a_url_is_refused(location: str) -> None:
    with pytest.raises(UserError, match=r"must be a directory .* that all workers share") as raised:
        AnswerStore(location)
    assert "secret" not in str(raised.value)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"--answers .*file: cannot be used: File exists"):
        AnswerStore(str(tmp_path / "file"))


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=r"its file system has no locks .* choose a directory on another one"):
        AnswerStore(str(tmp_path))


def test_a_store_that_may_only_be_read_is_enough_for_a_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, a="first")
    real = os.open

    def read_only(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", read_only)
    for journal in ("there", "gone"):
        assert read(tmp_path, "a", "b") == (["first", None], []), journal
        with pytest.raises(UserError, match=r"--answers .*: cannot be used: Read-only file system"):
            keep(tmp_path, b="second")
        (tmp_path / "journal").unlink(missing_ok=True)


def test_a_large_store_opens_in_about_a_second(tmp_path: Path) -> None:
    """100,000 answers of about 2 kB. The bound is loose: this guards against opening that parses every line."""
    wanted = asked("x" * 1500)
    line = write_line(wanted, said("y" * 300))
    others = (hashlib.sha256(str(number).encode()).hexdigest().encode() for number in range(99_999))
    with (tmp_path / "big.jsonl").open("wb") as stream:
        stream.writelines(line.replace(wanted.key.encode(), key, 1) for key in others)
        stream.write(line)
    began = time.process_time()
    store = AnswerStore(str(tmp_path))
    assert time.process_time() - began < 3
    assert len(store) == 100_000
    assert store.known(wanted) == said("y" * 300)
