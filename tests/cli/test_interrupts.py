"""Ctrl-C and SIGTERM end the program cleanly wherever they find it. Real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Only a hang takes this long; the program's own bound is below a second.
END_SECONDS = 20.0

# The program with its command replaced by `WORK`, which says "begun" when a signal may come.
PROGRAM = """
import sys, time, types
import trio
from swarmnode.node.cli import main

def begun():
    print("begun", file=sys.stderr, flush=True)

{work}

module = types.ModuleType("swarmnode.node.cli.{command}")
module.run = run
sys.modules[module.__name__] = module
sys.exit(main.main(["{command}", "--json"]))
"""

BEFORE_THE_LOOP = """
def run(call):
    begun()
    time.sleep(600)
"""
IN_THE_LOOP = """
def run(call):
    async def work():
        try:
            begun()
            await trio.sleep_forever()
        finally:
            print("cleaned", file=sys.stderr, flush=True)
    call.run(work)
"""
STUCK_IN_THE_MAIN_THREAD = """
def run(call):
    async def work():
        begun()
        time.sleep(600)
    call.run(work)
"""
STUCK_IN_A_THREAD = """
def run(call):
    async def work():
        def compute():
            begun()
            time.sleep(600)
        await trio.to_thread.run_sync(compute)
    call.run(work)
"""
SLOW_TO_CLEAN = """
def run(call):
    async def work():
        try:
            begun()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                print("cleaning", file=sys.stderr, flush=True)
                await trio.sleep_forever()
    call.run(work, grace_seconds=600)
"""
RAISES_WHEN_CANCELLED = """
from swarmnode.errors import PeerLost
def run(call):
    async def work():
        try:
            begun()
            await trio.sleep_forever()
        finally:
            raise PeerLost("It went away while we were leaving.")
    call.run(work)
"""
AN_ANSWER = """
def run(call):
    async def work():
        with trio.CancelScope() as scope, call.interrupts.cancels_answer(scope):
            begun()
            await trio.sleep_forever()
        print("answer stopped", file=sys.stderr, flush=True)
        await trio.sleep_forever()
    call.run(work)
"""


@contextmanager
def started(work: str, command: str = "generate") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(work=work, command=command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    """Exit code, the codes of the events, standard error."""
    out, err = process.communicate(timeout=END_SECONDS)
    assert "Traceback" not in err
    return process.returncode, [json.loads(line)["code"] for line in out.splitlines()], err


@pytest.mark.parametrize(
    "work",
    [BEFORE_THE_LOOP, IN_THE_LOOP, STUCK_IN_THE_MAIN_THREAD, STUCK_IN_A_THREAD],
    ids=["before", "in", "main", "thread"],
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_a_signal_ends_every_phase(work: str, number: signal.Signals, code: int) -> None:
    with started(work) as process:
        process.send_signal(number)
        assert ended(process)[:2] == (code, ["interrupted"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)], ids=["INT", "TERM"])
@pytest.mark.parametrize("command", ["serve", "bootstrap"])
def test_a_node_that_is_told_to_leave_has_done_well(command: str, number: signal.Signals, code: int) -> None:
    with started(IN_THE_LOOP, command) as process:
        process.send_signal(number)
        assert ended(process)[0] == code


def test_what_runs_is_unwound() -> None:
    with started(IN_THE_LOOP) as process:
        process.send_signal(signal.SIGINT)
        assert ended(process)[2] == "cleaned\n"


def test_a_second_signal_does_not_wait_for_cleaning() -> None:
    with started(SLOW_TO_CLEAN) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline() == "cleaning\n"
        process.send_signal(signal.SIGINT)
        assert ended(process)[:2] == (130, ["interrupted"])


def test_an_error_on_the_way_out_changes_nothing() -> None:
    with started(RAISES_WHEN_CANCELLED) as process:
        process.send_signal(signal.SIGINT)
        assert ended(process)[:2] == (130, ["interrupted"])


def test_the_first_ctrl_c_in_an_answer_stops_the_answer_only() -> None:
    with started(AN_ANSWER, "chat") as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline() == "answer stopped\n"
        process.send_signal(signal.SIGINT)
        assert ended(process)[:2] == (130, ["interrupted"])


def test_sigterm_in_an_answer_ends_the_program() -> None:
    with started(AN_ANSWER, "chat") as process:
        process.send_signal(signal.SIGTERM)
        assert ended(process)[:2] == (143, ["interrupted"])


def test_a_reader_that_leaves_is_no_reason_to_complain() -> None:
    command = f"{sys.executable} -m swarmnode.node.cli.main models | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=END_SECONDS)
    first, code = done.stdout.splitlines()
    assert first.split() == ["family", "certified", "max", "difference", "reason"]
    # The table may have fitted the pipe before the reader left.
    assert code in ("0", "141")
    assert done.stderr == ""


def test_a_closed_pipe_ends_with_141() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "swarmnode.node.cli.main", "models", "--json"],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=END_SECONDS,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_what_nobody_foresaw_asks_for_a_report() -> None:
    work = "def run(call):\n    raise ValueError('strange')\nbegun()"
    with started(work) as process:
        out, err = process.communicate(timeout=END_SECONDS)
        event = json.loads(out)
        assert process.returncode == 70
        assert (event["code"], "strange" in event["message"], "report" in event["hint"]) == ("internal", True, True)
        assert err == ""


def test_debug_shows_the_traceback() -> None:
    work = "def run(call):\n    raise ValueError('strange')"
    program = PROGRAM.replace('["{command}", "--json"]', '["{command}", "--json", "--debug"]')
    done = subprocess.run(
        [sys.executable, "-c", program.format(work=work, command="status")],
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "ValueError: strange" in done.stderr
    assert json.loads(done.stdout)["code"] == "internal"
