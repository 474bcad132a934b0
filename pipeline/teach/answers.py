"""The answer store: what teachers have said, on a disk, so that nothing is paid for twice.

A directory of JSONL files (:mod:`pipeline.teach.answer_line`) that can be copied, merged and read. Every process that
writes has a file of its own and only ever appends to it, so what a dying process or a full disk leaves unfinished spoils
nothing. Many processes use one store at once, on several machines where they share a file system with locks.

Three rules make a replay give what every run was given:

* An answer is on the disk before it is used. Coroutines that wait for that share one sync, off the event loop.
* The first answer to a question wins. Whoever writes holds the lock of the directory, reads first what others have
  written, and takes their answer where they were faster.
* A question that is not known here is looked up in what others have written since, before it counts as new.

``journal`` in the directory is the file that is locked. It says which files have grown, so that catching up does not
mean looking at all of them; without it nothing is lost.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.engines.protocol import Answer
from pipeline.errors import UserError
from pipeline.location import is_url, redact
from pipeline.teach.answer_line import Question, key_of, read_line, write_line

_JOURNAL = "journal"

#: A journal longer than this is begun anew, and everybody then looks at all files once.
_JOURNAL_BYTES = 1 << 20

#: Length of the random first line that tells one journal from the next.
_TOKEN_BYTES = 33

#: A file that has grown, and that this was on the disk before the lock was let go.
_ENTRY = re.compile(rb"^(answers-[0-9a-f]{32}\.jsonl)\n(synced\n)?", re.MULTILINE)

#: Seconds after which a system has written to the disk whatever a dead process has left in memory, ten times over.
_SETTLED = 300.0

_BLOCK_BYTES = 8 << 20
_OPEN_FILES = 64

#: Faults beyond these are counted only.
_FAULTS_KEPT = 100


class Fault(NamedTuple):
    """A line of the store that cannot be used."""

    path: str
    #: From 1.
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}: line {self.line}: {self.message}"


class _Place(NamedTuple):
    """Where a line stands."""

    file: int
    offset: int
    length: int

    def packed(self) -> int:
        return (self.file << 48 | self.offset) << 32 | self.length

    @staticmethod
    def of(packed: int) -> _Place:
        return _Place(packed >> 80, packed >> 32 & (1 << 48) - 1, packed & (1 << 32) - 1)


class _File:
    """A file of the store: how far it has been read."""

    __slots__ = ("lines", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Up to here every line is known.
        self.size = 0
        self.lines = 0


class _Wish(NamedTuple):
    """A question that somebody wants answered, or one with its answer that somebody wants kept."""

    asked: Question
    answer: Answer | None
    line: bytes
    granted: asyncio.Future[Answer | None]


def check_place(location: str) -> str:
    """Look whether a store can be at a place, without making or reading one; the place, as processes elsewhere name it.

    Raises :class:`UserError` where answers cannot be kept there.
    """
    folder = _folder(location)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--answers {folder}: cannot be used: {there} is not a directory; name another place")
    needed = os.R_OK | os.X_OK if there == folder else os.W_OK | os.X_OK
    if not os.access(there, needed):
        raise UserError(f"--answers {folder}: no permission to {'read' if there == folder else 'write to'} {there}")
    return str(folder)


def _folder(location: str) -> Path:
    if is_url(location):
        raise UserError(
            f"--answers {redact(location)}: must be a directory (on a file system that all workers share), not a URL"
        )
    return Path(location).expanduser().absolute()


class AnswerStore:
    """The answers in one directory. One per process; its coroutines belong to one event loop."""

    def __init__(self, location: str) -> None:
        """Open the store, and make its directory where there is none.

        Raises :class:`UserError` where answers cannot be kept there.
        """
        self.folder = _folder(location)
        #: Lines that cannot be used, the first ones found.
        self.faults: list[Fault] = []
        self.fault_count = 0
        self._files: list[_File] = []
        self._numbers: dict[str, int] = {}
        #: Key to :class:`_Place`, packed: a store of ten million answers must fit in memory.
        self._index: dict[bytes, int] = {}
        self._spoilt: set[int] = set()
        self._own: tuple[int, int] | None = None  # descriptor, number
        self._handles: OrderedDict[int, int] = OrderedDict()
        self._reading = threading.Lock()
        self._token = b""
        self._journal_read = 0
        self._waiting: list[_Wish] = []
        self._flushing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "answers")
        self._journal = -1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal = self._open_journal()
            with self._locked(exclusive=False):
                self._catch_up()
        except (OSError, UserError) as error:
            if self._journal >= 0:
                os.close(self._journal)
            raise (self._unusable(error) if isinstance(error, OSError) else error) from None

    def __len__(self) -> int:
        return len(self._index)

    def known(self, asked: Question) -> Answer | None:
        """The answer to a question as far as this process has read the store."""
        return self._read(bytes.fromhex(asked.key))

    async def find(self, asked: Question) -> Answer | None:
        """The answer to a question, whoever wrote it; None where there is none."""
        answer = self.known(asked)
        if answer is not None or self._nothing_new():
            return answer
        return await self._granted(asked, None, b"")

    async def keep(self, asked: Question, answer: Answer) -> Answer:
        """Keep an answer: when this returns, one is on the disk. It is that one, which need not be ``answer``.

        Raises :class:`UserError` where it cannot be written, for example on a full disk.
        """
        kept = await self._granted(asked, answer, write_line(asked, answer))
        assert kept is not None
        return kept

    async def close(self) -> None:
        """Write what waits, and let go of all files."""
        while self._flushing is not None:
            await asyncio.wait([self._flushing])
        self._thread.shutdown()
        with self._reading:
            for handle in self._handles.values():
                os.close(handle)
            self._handles.clear()
        if self._own is not None:
            os.close(self._own[0])
            self._own = None
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1

    # Many waiting coroutines, one lock and one sync.

    async def _granted(self, asked: Question, answer: Answer | None, line: bytes) -> Answer | None:
        loop = asyncio.get_running_loop()
        wish = _Wish(asked, answer, line, loop.create_future())
        self._waiting.append(wish)
        if self._flushing is None:
            self._flushing = loop.create_task(self._flush())
        return await wish.granted

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        wishes: list[_Wish] = []
        try:
            while self._waiting:
                wishes, self._waiting = self._waiting, []
                work = loop.run_in_executor(self._thread, self._grant, wishes)
                await asyncio.wait([work])
                error = work.exception()
                for number, wish in enumerate(wishes):
                    if wish.granted.done():  # whoever waited is gone
                        continue
                    if error is not None:
                        wish.granted.set_exception(error)
                    else:
                        wish.granted.set_result(work.result()[number])
        finally:
            self._flushing = None
            for wish in wishes + self._waiting:
                wish.granted.cancel()  # only where this task was cancelled: else all are done

    def _grant(self, wishes: Sequence[_Wish]) -> list[Answer | None]:
        new: dict[str, _Wish] = {}
        granted: list[Answer | None] = []
        try:
            with self._locked(exclusive=any(wish.answer is not None for wish in wishes)):
                self._catch_up()
                for wish in wishes:
                    answer = self.known(wish.asked)
                    if answer is None and wish.answer is not None:
                        answer = new.setdefault(wish.asked.key, wish).answer
                    granted.append(answer)
                if new:
                    self._append(list(new.values()))
        except OSError as error:
            raise self._unusable(error) from None
        return granted

    def _unusable(self, error: OSError) -> UserError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return UserError(
                f"--answers {self.folder}: the disk is full. Free some space and run the same command again: "
                f"what is kept there is not asked for again"
            )
        return UserError(f"--answers {self.folder}: cannot be used: {error.strerror}")

    # The lock and the journal.

    def _open_journal(self) -> int:
        path = self.folder / _JOURNAL
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        # A store that may only be read: a replay needs no more.
        try:
            return os.open(path, os.O_RDONLY)
        except OSError:
            return -1

    @contextmanager
    def _locked(self, exclusive: bool) -> Iterator[None]:
        if self._journal < 0:
            yield
            return
        while True:
            try:
                fcntl.flock(self._journal, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            except OSError as error:
                raise UserError(
                    f"--answers {self.folder}: its file system has no locks ({error.strerror}), and workers would overwrite "
                    f"each other's answers: choose a directory on another one"
                ) from None
            try:
                if os.fstat(self._journal).st_ino == (self.folder / _JOURNAL).stat().st_ino:
                    break
            except FileNotFoundError:
                pass
            deleted, self._journal = self._journal, -1
            os.close(deleted)  # this one is not what others lock
            self._journal = self._open_journal()
        try:
            yield
        finally:
            fcntl.flock(self._journal, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Read what others have written. The lock is held: what is there is complete."""
        if self._journal >= 0:
            token = os.pread(self._journal, _TOKEN_BYTES, 0)
            size = os.fstat(self._journal).st_size
            if token == self._token != b"" and size >= self._journal_read:
                journal = _pread(self._journal, self._journal_read, size - self._journal_read)
                entries = _ENTRY.findall(journal)
                torn = {name for name, synced in entries if not synced}
                for name in sorted({name for name, _ in entries}):
                    self._scan(name.decode(), name in torn)
                self._journal_read = size  # last: from now on there is nothing new
                return
        for path in sorted(self.folder.glob("*.jsonl")):
            self._scan(path.name)
        if self._journal >= 0:
            self._token, self._journal_read = token, size

    def _nothing_new(self) -> bool:
        """Whether nobody has begun to write since this process caught up, as far as can be told without the lock."""
        try:
            token = os.pread(self._journal, _TOKEN_BYTES, 0)
            return token == self._token != b"" and os.fstat(self._journal).st_size == self._journal_read
        except OSError:
            return False

    def _announce(self, name: str) -> None:
        """Say in the journal that a file grows, before it does."""
        if not self._token or self._journal_read > _JOURNAL_BYTES:
            os.ftruncate(self._journal, 0)
            self._token = uuid.uuid4().hex.encode() + b"\n"
            _write(self._journal, self._token)
            self._journal_read = _TOKEN_BYTES
        # With a line break on either side: an entry that a dying process has torn spoils no other.
        self._journal_read += _write(self._journal, f"\n{name}\n".encode())

    # Files.

    def _scan(self, name: str, torn: bool | None = None) -> None:
        """Index the lines of a file that are new.

        ``torn``: whether its writer may have died before they were on the disk; None: it is not known. Syncing a file that
        is on the disk already would still make the disk empty its own cache.
        """
        number = self._number(name)
        file = self._files[number]
        try:
            with file.path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                if status.st_size <= file.size:
                    return
                if torn or (torn is None and time.time() - status.st_mtime < _SETTLED):
                    with suppress(OSError):  # where it can only be read
                        os.fdatasync(stream.fileno())
                stream.seek(file.size)
                rest = b""
                while block := stream.read(_BLOCK_BYTES):
                    lines = (rest + block).split(b"\n")
                    rest = lines.pop()
                    for line in lines:
                        self._take(line, _Place(number, file.size, len(line)))
                        file.size += len(line) + 1
                        file.lines += 1
        except FileNotFoundError:
            return

    def _take(self, line: bytes, place: _Place) -> None:
        key = key_of(line)
        if key is None:
            if line:
                self._fault(place, "not an answer", self._files[place.file].lines + 1)
        elif (packed := place.packed()) not in self._spoilt:
            self._index.setdefault(key, packed)

    def _read(self, key: bytes) -> Answer | None:
        while (packed := self._index.get(key)) is not None:
            place = _Place.of(packed)
            try:
                line = self._line(place)
                if key_of(line) != key:
                    raise ValueError("it has been overwritten")
                return read_line(line)
            except (OSError, ValueError) as error:
                self._spoilt.add(packed)
                self._fault(place, str(error))
                self._find_again(key)
        return None

    def _line(self, place: _Place) -> bytes:
        with self._reading:
            handle = self._handles.get(place.file)
            if handle is None:
                handle = self._handles[place.file] = os.open(self._files[place.file].path, os.O_RDONLY)
                if len(self._handles) > _OPEN_FILES:
                    os.close(self._handles.popitem(last=False)[1])
            self._handles.move_to_end(place.file)
            return _pread(handle, place.offset, place.length)

    def _find_again(self, key: bytes) -> None:
        """A line could not be read: look for another with its key."""
        self._index.pop(key, None)
        for number, file in enumerate(self._files):
            with suppress(FileNotFoundError), file.path.open("rb") as stream:
                offset = 0
                for line in stream:
                    packed = _Place(number, offset, len(line) - 1).packed()
                    offset += len(line)
                    if offset <= file.size and packed not in self._spoilt and key_of(line[:-1]) == key:
                        self._index[key] = packed
                        return

    def _append(self, wishes: Sequence[_Wish]) -> None:
        try:
            if self._own is None:
                self._own = self._new_file()
            handle, number = self._own
            file = self._files[number]
            self._announce(file.path.name)
            _write(handle, b"".join(wish.line for wish in wishes))
            os.fsync(handle)
            self._journal_read += _write(self._journal, b"synced\n")
        except OSError:
            self._abandon()
            raise
        for wish in wishes:
            self._index[bytes.fromhex(wish.asked.key)] = _Place(number, file.size, len(wish.line) - 1).packed()
            file.size += len(wish.line)
            file.lines += 1

    def _new_file(self) -> tuple[int, int]:
        name = f"answers-{uuid.uuid4().hex}.jsonl"
        number = self._number(name)
        handle = os.open(self.folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return handle, number

    def _abandon(self) -> None:
        """Writing failed: take back what was written, and never append to that file again."""
        if self._own is not None:
            handle, number = self._own
            with suppress(OSError):
                os.ftruncate(handle, self._files[number].size)
            os.close(handle)
            self._own = None
        self._token = b""  # look at all files, that one too, before the next answer

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._files)
            self._files.append(_File(self.folder / name))
        return number

    def _fault(self, place: _Place, message: str, line: int | None = None) -> None:
        self.fault_count += 1
        if len(self.faults) < _FAULTS_KEPT:
            path = self._files[place.file].path
            if line is None:
                line = _lines_before(path, place.offset) + 1
            self.faults.append(Fault(str(path), line, message))


def _lines_before(path: Path, offset: int) -> int:
    count = 0
    with suppress(OSError), path.open("rb") as stream:
        while offset > 0 and (block := stream.read(min(offset, _BLOCK_BYTES))):
            count += block.count(b"\n")
            offset -= len(block)
    return count


def _pread(handle: int, offset: int, length: int) -> bytes:
    data = b""
    while len(data) < length and (block := os.pread(handle, length - len(data), offset + len(data))):
        data += block
    return data


def _write(handle: int, data: bytes) -> int:
    """Write all of ``data``; its length."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
    return len(data)
