"""Files that are whole or not there, also after a power cut."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a file beside, and rename it."""
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(text)
    sync(beside)
    beside.replace(path)
    sync(path.parent)


def put_folder(beside: Path, final: Path) -> None:
    """Give a folder that was written beside its name. One that has it already is moved aside, and deleted at the end."""
    for path in [*beside.rglob("*"), beside]:
        sync(path)
    aside = final.with_name(f".{final.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        final.rename(aside)
    beside.rename(final)
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
