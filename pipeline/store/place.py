"""A place for files, on a disk or behind any URL that ``pyarrow.fs`` opens, where a file is either there or not.

On a disk a file is written under a temporary name in ``_work/``, synced and renamed. An object store shows an object
only when its upload is complete, which is the same promise.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.errors import UserError
from pipeline.location import redact, redact_all
from pipeline.store.format import WORK


class Place:
    """A directory that holds a dataset. Picklable: workers open it by its location."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.local = "://" not in location or location.startswith("file://")
        try:
            if self.local:
                path = unquote(location.removeprefix("file://")) if location.startswith("file://") else location
                self._fs: Any = pafs.LocalFileSystem()
                self._root = str(Path(path).expanduser().absolute())
            else:
                self._fs, root = pafs.FileSystem.from_uri(location)
                self._root = root.rstrip("/")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{self}: not a place that can be opened: {redact_all(str(error), location)}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location,)

    def __str__(self) -> str:
        return redact(self.location)

    def path(self, name: str = "") -> str:
        """The full path of a file in this place."""
        return f"{self._root}/{name}" if name else self._root

    def holds(self, location: str) -> bool:
        """Whether a path or URL is below this place."""
        return redact(location).startswith(f"{self._root if self.local else str(self).rstrip('/')}/")

    def put(self, name: str, data: bytes) -> None:
        """Write a file so that it is either whole or not there, also after a power cut."""
        try:
            if self.local:
                self._put_local(name, data)
            else:
                with self._fs.open_output_stream(self.path(name), compression=None) as stream:
                    stream.write(data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"{self.path(name)}: the disk is full. Free some space and run the same command again: "
                    f"finished shards are kept"
                ) from None
            raise UserError(f"{self.path(name)}: cannot be written: {error}") from None

    def _put_local(self, name: str, data: bytes) -> None:
        target = Path(self.path(name))
        temporary = Path(self.path(WORK)) / f"{uuid.uuid4().hex}.tmp"
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def get(self, name: str) -> bytes | None:
        """A file's bytes, or None where there is no such file."""
        try:
            with self._fs.open_input_stream(self.path(name), compression=None) as stream:
                data: bytes = stream.read()
                return data
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.path(name)}: cannot be read: {error}") from None

    def kind(self) -> pafs.FileType:
        """What is here: a directory, a file, or nothing."""
        try:
            return self._fs.get_file_info(self._root).type
        except OSError as error:
            raise UserError(f"{self}: cannot be read: {error}") from None

    def open(self, name: str) -> pa.NativeFile:
        """A file to read at random, memory-mapped where it is on a disk. Raises FileNotFoundError."""
        if self.local:
            return pa.memory_map(self.path(name))
        return self._fs.open_input_file(self.path(name))

    def sha256(self, name: str) -> str | None:
        """The hash of a file, or None where there is no such file."""
        digest = hashlib.sha256()
        try:
            with self._fs.open_input_stream(self.path(name), compression=None) as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self.path(name)}: cannot be read: {error}") from None
        return digest.hexdigest()

    def names(self, folder: str = "") -> list[str]:
        """The files below a folder, as names relative to this place, sorted."""
        selector = pafs.FileSelector(self.path(folder), recursive=True, allow_not_found=True)
        root = len(self._root) + 1
        try:
            found = self._fs.get_file_info(selector)
            return sorted(info.path[root:] for info in found if info.type == pafs.FileType.File)
        except OSError as error:
            raise UserError(f"{self.path(folder)}: cannot be listed: {error}") from None

    def delete(self, name: str) -> None:
        """Delete a file if it is there."""
        try:
            self._fs.delete_file(self.path(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.path(name)}: cannot be deleted: {error}") from None

    def delete_folder(self, folder: str) -> None:
        """Delete a folder and all below it, if it is there."""
        if self.local:
            shutil.rmtree(self.path(folder), ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                self._fs.delete_dir(self.path(folder))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second run on this machine away. The system releases the lock of a process that dies.

        A run that writes nothing leaves nothing. An object store has no locks: there two runs at a time do work twice,
        and write the same.
        """
        if not self.local:
            yield
            return
        path = Path(self.path(WORK)) / "lock"
        stream = self._locked(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            stream.close()
            with suppress(OSError):  # there is work in it
                path.parent.rmdir()

    def _locked(self, path: Path) -> IO[bytes]:
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stream = path.open("wb")
            except OSError as error:
                raise UserError(f"--out {self}: cannot be written: {error.strerror}") from None
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.close()
                raise UserError(f"--out {self}: another run is writing there; wait for it to end") from None
            except OSError:
                return stream  # a file system without locks
            if path.exists() and path.stat().st_ino == os.fstat(stream.fileno()).st_ino:
                return stream
            stream.close()  # the run that has just ended took its lock file away: this is not the one that others see
