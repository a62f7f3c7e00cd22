"""The folder for what can be made again, and the making of it by one process at a time. Knows no model."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from swarmnode.errors import DiskFull

__all__ = ["cache_folder", "disk_full_named", "make_once", "require_room"]

ROOM_TO_SPARE_BYTES = 64 << 20
"""Left free on a disk, so that filling it to the brim does not break everything else on the machine."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/swarmnode`, by default `~/.cache/swarmnode`. Not created yet."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path is to be ignored.
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "swarmnode"


def make_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder unless it is there, whole or not at all, even when several processes want it at once.

    Args:
        folder: the folder wanted; its parent is created.
        fill: writes its content into the empty folder it is given.

    Raises:
        DiskFull: there is no room. And whatever `fill` raises.
    """
    if folder.is_dir():
        return folder
    with disk_full_named(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_process(folder.with_name(f"{folder.name}.lock")):
            if folder.is_dir():
                return folder
            # What another process left unfinished when it was killed: it does not hold the lock any more.
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                fill(unfinished)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def require_room(folder: Path, size: int, what: str) -> None:
    """Raise DiskFull when `size` more bytes, for `what`, would fill the disk that holds `folder`."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if size + ROOM_TO_SPARE_BYTES > free:
        raise DiskFull(
            f"{what} needs {_size(size)} in {folder}, where {_size(free)} are free.",
            hint="Make room there, or point XDG_CACHE_HOME and HF_HOME to a larger disk.",
        )


@contextmanager
def disk_full_named(folder: Path) -> Iterator[None]:
    """Turns the system's word for a full disk into DiskFull, naming the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"There is no room left in {folder}.",
                hint="Make room there, or point XDG_CACHE_HOME and HF_HOME to a larger disk.",
            ) from error
        raise


@contextmanager
def _only_process(lock: Path) -> Iterator[None]:
    """Waits until no other process is inside. The system lets go of the lock when a process dies."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
