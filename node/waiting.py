"""Processes in waiting: made by exec or by fork, tied to our life, and told later what to run. Knows no model.

A fork shares what this process has imported, which for torch is seconds of work and hundreds of megabytes; it must be
made from the main thread before anything has computed, started threads of its own or entered the event loop.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NoReturn

__all__ = ["ORPHAN_EXIT", "Waiting", "can_fork", "fork_waiting", "run_when_told", "spawn_waiting", "tie_to"]

ORPHAN_EXIT: Final = 1
_PR_SET_PDEATHSIG: Final = 1
_READ_BYTES: Final = 64 * 1024

Program = Callable[[list[str]], int]


class Waiting:
    """One process in waiting. Its three pipes are ours; it ends when standard input does.

    Attributes:
        pid: its process id, which is that of its session and process group, too.
        stdin: descriptor to write what to run to.
        stdout, stderr: descriptors to read from.
    """

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self._ended = False

    def tell(self, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        """Have it run `swarmnode ARGUMENTS` with these and no other environment variables."""
        line = json.dumps({"arguments": list(arguments), "environ": dict(environ)}) + "\n"
        data = line.encode()
        while data:  # an environment may be larger than a pipe; the other end is reading
            data = data[os.write(self.stdin, data) :]

    def has_ended(self) -> bool:
        if not self._ended:
            pid, _ = os.waitpid(self.pid, os.WNOHANG)
            self._ended = pid == self.pid
        return self._ended

    def signal(self, number: int) -> None:
        """Send a signal to it and to all that it started."""
        if self.has_ended():
            return
        with suppress(ProcessLookupError):  # so early that it has no group of its own yet
            os.killpg(self.pid, number)
        os.kill(self.pid, number)

    def end(self) -> None:
        """Kill it and close the pipes; returns when it is no more."""
        self.signal(signal.SIGKILL)
        if not self._ended:
            os.waitpid(self.pid, 0)
            self._ended = True
        for descriptor in (self.stdin, self.stdout, self.stderr):
            os.close(descriptor)


def can_fork() -> bool:
    """Whether a fork of a process that has imported torch is sound here; the system libraries of others object."""
    return sys.platform == "linux"


def spawn_waiting() -> Waiting:
    """A fresh Python."""
    ours, theirs = _pipes()
    # In a session of its own, so that Ctrl-C on the terminal is ours to pass on. Not through trio, which starts
    # processes from a thread: the kernel ties a child to the *thread* that made it.
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "swarmnode.node.cli.tied", str(os.getpid())],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, descriptor, target) for target, descriptor in enumerate(theirs)],
        setsid=True,
    )
    for descriptor in theirs:
        os.close(descriptor)
    return Waiting(pid, *ours)


def fork_waiting(program: Program) -> Waiting:
    """A fork of this process, which will run `program(arguments)`."""
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = _pipes()
    parent_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _begin_fork(parent_pid, theirs, program)
    for descriptor in theirs:
        os.close(descriptor)
    return Waiting(pid, *ours)


def tie_to(parent_pid: int) -> None:
    """End this process when its parent ends, kill -9 included: by the kernel's hand on Linux."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the lines above.
    if os.getppid() != parent_pid:
        os._exit(ORPHAN_EXIT)


def run_when_told(program: Program) -> NoReturn:
    """Wait for what to run, run it, and end with its exit code. Ends at once when standard input does."""
    held = b""
    while b"\n" not in held:
        chunk = os.read(0, _READ_BYTES)
        if not chunk:
            os._exit(ORPHAN_EXIT)
        held += chunk
    told = json.loads(held)
    os.environ.clear()
    os.environ.update(told["environ"])
    threading.Thread(target=_end_with_input, name="swarmnode-tied", daemon=True).start()
    code = program(told["arguments"])
    sys.stdout.flush()
    os._exit(code)


def _begin_fork(parent_pid: int, pipes: tuple[int, int, int], program: Program) -> NoReturn:
    """What a fork does: never to return into the code of its parent, whatever happens."""
    try:
        tie_to(parent_pid)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for target, descriptor in enumerate(pipes):
            os.dup2(descriptor, target)
        # The pipes of our brothers: a copy of one would keep it open when our parent is gone.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        run_when_told(program)
    finally:
        os._exit(ORPHAN_EXIT)


def _pipes() -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Standard input, output and error of a child: our ends and its ends."""
    (in_theirs, in_ours), (out_ours, out_theirs), (err_ours, err_theirs) = os.pipe(), os.pipe(), os.pipe()
    return (in_ours, out_ours, err_ours), (in_theirs, out_theirs, err_theirs)


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(ORPHAN_EXIT)
