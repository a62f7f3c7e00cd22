"""The demo answers, and leaves no process behind: neither at its end nor after Ctrl-C or kill -9 in any phase."""

from __future__ import annotations

import signal
from typing import Final

import psutil
import pytest

from support.programs import Program, split_evenly
from swarmnode.node.demo import DEMO_BLOCKS, equal_shares, process_environment

# Only a process that nobody ends lives this long after its parent.
GONE_SECONDS: Final = 20.0
LONG_STORY: Final = "Tell me a very long story about a fox."


def processes_of(program: Program, wanted: int) -> list[psutil.Process]:
    """The processes that the demo starts, once it has started so many."""
    return [psutil.Process(program.wait_for("process")["pid"]) for _ in range(wanted)]


def assert_gone(processes: list[psutil.Process]) -> None:
    # A process that has ended but that nobody asks for its exit code is gone, too.
    _, alive = psutil.wait_procs([each for each in processes if not is_gone(each)], timeout=GONE_SECONDS)
    assert not [each for each in alive if not is_gone(each)]


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("servers", [1, 2, 3, 7, 16, 31])
def test_shares_are_equal(servers: int) -> None:
    shares = equal_shares(DEMO_BLOCKS, servers)
    assert list(shares) == split_evenly(DEMO_BLOCKS, min(servers, DEMO_BLOCKS))


def test_the_users_own_settings_stay_out_of_the_demo() -> None:
    assert process_environment({"SWARMNODE_JOIN": "x", "HOME": "/home/ann"}) == {"HOME": "/home/ann"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_answers_over_three_servers_and_cleans_up() -> None:
    with Program("demo", "--max-new-tokens", "6") as program:
        processes = processes_of(program, 4)
        route = program.wait_for("route")
        assert [hop["blocks"] for hop in route["hops"]] == [[0, 10], [10, 20], [20, 30]]
        assert len({hop["peer_id"] for hop in route["hops"]}) == 3
        done = program.wait_for("done")
        assert program.finish() == 0
    assert_gone(processes)
    tokens = [event for event in program.events if event["event"] == "token"]
    assert "".join(token["text"] for token in tokens) == done["text"]
    assert [token["id"] for token in tokens] == done["ids"]
    assert 1 < len(done["ids"]) <= 6
    assert done["text"].strip()
    assert done["tokens_per_second"] > 0
    assert done["hop_seconds"] is not None


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("phase", [None, "progress"])
def test_ctrl_c_leaves_no_process_behind(phase: str | None) -> None:
    with Program("demo", "--servers", "2", "--max-new-tokens", "500", "--prompt", LONG_STORY) as program:
        # With no phase it is importing.
        processes = processes_of(program, 3 if phase else 1)
        if phase is not None:
            program.wait_for(phase)
        program.interrupt()
        assert program.finish() == 130
        assert_gone(processes)
        assert program.events[-1]["code"] == "interrupted"
        assert "Traceback" not in program.log


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("phase", [None, "token"])
def test_kill_9_leaves_no_process_behind(phase: str | None) -> None:
    with Program("demo", "--servers", "2", "--max-new-tokens", "500", "--prompt", LONG_STORY) as program:
        # With no phase the first child is just beginning: it has to find by itself that its parent is gone.
        processes = processes_of(program, 3 if phase else 1)
        if phase is not None:
            program.wait_for(phase)
        program.process.send_signal(signal.SIGKILL)
        program.process.wait()
        assert_gone(processes)


@pytest.mark.slow
def test_a_server_that_dies_ends_the_demo_with_its_name() -> None:
    with Program("demo", "--servers", "2") as program:
        _, first, _ = processes_of(program, 3)
        program.wait_for("progress")
        first.kill()
        assert program.finish() == 3
        error = program.events[-1]
        assert (error["event"], error["code"]) == ("error", "machine-fault")
        assert "server 1" in error["message"]
