"""Things in the cache are made once, whole or not at all, by one process at a time."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmnode.errors import DiskFull
from swarmnode.models.cache_folder import cache_folder, disk_full_named, make_once, require_room


def test_the_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" / "swarmnode"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == tmp_path / ".cache" / "swarmnode"


def write(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "file").write_text(text)

    return fill


def test_made_once(tmp_path: Path) -> None:
    folder = make_once(tmp_path / "deep" / "thing", write("first"))
    assert make_once(folder, write("second")) == folder
    assert (folder / "file").read_text() == "first"


def test_what_fails_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken off"):
        make_once(tmp_path / "thing", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["thing.lock"]
    make_once(tmp_path / "thing", write("whole"))
    assert [path.name for path in (tmp_path / "thing").iterdir()] == ["file"]


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / "thing.unfinished").mkdir()
    (tmp_path / "thing.unfinished" / "half").write_text("x")
    (tmp_path / "thing.lock").touch()
    make_once(tmp_path / "thing", write("whole"))
    assert [path.name for path in (tmp_path / "thing").iterdir()] == ["file"]


PROGRAM = """
import os, sys
from pathlib import Path
from swarmnode.models.cache_folder import make_once
def fill(folder):
    (folder / "file").write_text(str(os.getpid()))
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
print((make_once(Path(sys.argv[1]), fill) / "file").read_text())
"""


def test_processes_do_not_trip_over_each_other(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path / "thing"), str(log)]
    running = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    told = {process.communicate(timeout=60)[0].strip() for process in running}
    assert all(process.returncode == 0 for process in running)
    assert set(log.read_text().splitlines()) == told
    assert len(told) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_called_so(tmp_path: Path, number: int) -> None:
    def fill(folder: Path) -> None:
        raise OSError(number, "full")

    with pytest.raises(DiskFull, match=f"no room left in {tmp_path / 'thing'}") as caught:
        make_once(tmp_path / "thing", fill)
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_the_real_full_device_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(DiskFull), disk_full_named(tmp_path), Path("/dev/full").open("wb") as device:
        device.write(b"x" * 10_000_000)


def test_other_errors_pass() -> None:
    with pytest.raises(PermissionError), disk_full_named(Path("x")):
        raise PermissionError(errno.EACCES, "no")


def test_room_is_asked_for_before_the_work(tmp_path: Path) -> None:
    require_room(tmp_path / "not" / "there", 1, "Nothing much")
    with pytest.raises(DiskFull, match=r"Everything needs 1000000000\.0 GB in .*, where .* are free"):
        require_room(tmp_path, 10**18, "Everything")
