"""Processes in waiting run what they are told, and never outlive who made them. Real processes, really killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psutil
import pytest

from swarmnode.node.waiting import ORPHAN_EXIT, spawn_waiting

# Only a process that nobody ends lives this long after its parent.
GONE_SECONDS: Final = 20.0

# A parent that makes one child, says its pid, and stays.
PARENT = """
import json, os, sys, time
from swarmnode.node.waiting import fork_waiting, spawn_waiting

def program(arguments):
    print(json.dumps([arguments, dict(os.environ), os.getsid(0) == os.getpid()]), flush=True)
    {doing}
    return 7

child = {making}
{telling}
print(child.pid, flush=True)
if {telling!r}:
    print(os.fdopen(child.stdout).readline(), end="", flush=True)
time.sleep(600)
"""
TELL = 'child.tell(["some", "arguments"], {"ONLY": "this"})'


@contextmanager
def parent(making: str, telling: str = "", doing: str = "") -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """The parent's process and its child."""
    script = PARENT.format(making=making, telling=telling, doing=doing)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            yield process, psutil.Process(int(process.stdout.readline()))
        finally:
            process.kill()


def assert_gone(process: psutil.Process) -> None:
    def gone() -> bool:
        # One that has ended but that nobody asks for its exit code is gone, too.
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    if not gone():
        psutil.wait_procs([process], timeout=GONE_SECONDS)
    assert gone()


@pytest.mark.parametrize(
    ("making", "telling", "doing"),
    [
        ("spawn_waiting()", "", ""),
        ("fork_waiting(program)", "", ""),
        ("fork_waiting(program)", TELL, "time.sleep(600)"),
        ("fork_waiting(program)", TELL, "while True: pass"),
    ],
    ids=["spawned", "forked", "sleeping", "spinning"],
)
def test_nothing_outlives_a_killed_parent(making: str, telling: str, doing: str) -> None:
    with parent(making, telling, doing) as (process, child):
        assert child.is_running()
        if telling:
            assert process.stdout is not None
            process.stdout.readline()  # it is doing what it was told
        process.kill()
        process.wait()
        assert_gone(child)


def test_a_fork_runs_what_it_is_told_in_the_environment_it_is_told() -> None:
    with parent("fork_waiting(program)", TELL) as (process, _):
        assert process.stdout is not None
        arguments, environ, leads_a_session = json.loads(process.stdout.readline())
    assert arguments == ["some", "arguments"]
    assert environ == {"ONLY": "this"}
    assert leads_a_session


def run_here(arguments: list[str], environ: dict[str, str]) -> tuple[int, Any]:
    """What a spawned program says, and its exit code."""
    child = spawn_waiting()
    child.tell(arguments, environ)
    with os.fdopen(os.dup(child.stdout), "rb") as stdout:
        said = stdout.read()
    _, status = os.waitpid(child.pid, 0)
    for descriptor in (child.stdin, child.stdout, child.stderr):
        os.close(descriptor)
    return os.waitstatus_to_exitcode(status), said


def test_a_spawned_process_runs_the_program() -> None:
    code, said = run_here(["models", "--json"], dict(os.environ))
    assert code == 0
    assert json.loads(said)["event"] == "models"


def test_an_environment_larger_than_a_pipe_arrives() -> None:
    code, said = run_here(["models"], {**os.environ, "SWARMNODE_JSON": "1", "LARGE": "x" * 300_000})
    assert code == 0
    assert json.loads(said)["event"] == "models"


def test_the_end_of_its_input_ends_a_process_in_waiting() -> None:
    child = spawn_waiting()
    os.close(child.stdin)
    _, status = os.waitpid(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == ORPHAN_EXIT
    os.close(child.stdout)
    os.close(child.stderr)


def test_ending_a_process_leaves_nothing() -> None:
    before = psutil.Process().num_fds()
    child = spawn_waiting()
    process = psutil.Process(child.pid)
    assert not child.has_ended()
    child.end()
    assert child.has_ended()
    assert not process.is_running()
    assert psutil.Process().num_fds() == before


def test_an_orphan_ends_at_once() -> None:
    # This process is not its parent's parent, so the program takes itself for an orphan.
    done = subprocess.run(
        [sys.executable, "-m", "swarmnode.node.cli.tied", str(os.getppid())],
        stdin=subprocess.PIPE,
        capture_output=True,
        timeout=GONE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (ORPHAN_EXIT, b"", b"")
