"""The commands together: a tiny model served, asked, talked with, looked at, interrupted in every phase."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.events import check_events
from support.programs import Program, bootstrap, serve
from support.tiny_folder import BLOCKS, CONTEXT_TOKENS
from swarmnode.node.cli.main import main
from swarmnode.node.identity import create_identity

END_SECONDS = 60.0
# So many tokens take long enough that a signal comes before the last one.
LONG = str(CONTEXT_TOKENS - 100)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Events = list[dict[str, Any]]
Told = Callable[..., tuple[int, Events]]


def named(events: Events, name: str) -> Events:
    return [event for event in events if event["event"] == name]


@pytest.fixture
def ask(told: Told) -> Callable[..., Events]:
    """The events of a command that is to end well, run in this process."""

    def run(*arguments: str, stdin: str = "") -> Events:
        code, events = told(*arguments, stdin=stdin)
        assert code == 0, events
        return events

    return run


def test_generate_tells_route_tokens_and_end(ask: Callable[..., Events], address: str, tiny_model: Path) -> None:
    arguments = ["generate", "--model", str(tiny_model), "--prompt", "abc", "--max-new-tokens", "9", "--join", address]
    events = ask(*arguments)
    tokens, [route], [done] = named(events, "token"), named(events, "route"), named(events, "done")
    assert [hop["blocks"] for hop in route["hops"]] == [[0, 2], [2, BLOCKS]]
    assert done["route"] == route["hops"]
    assert [token["id"] for token in tokens] == done["ids"]
    assert "".join(token["text"] for token in tokens) == done["text"]
    assert (len(done["ids"]), done["finish_reason"]) == (9, "length")
    assert events[-1] == done
    assert named(ask(*arguments), "done")[0]["ids"] == done["ids"]


def test_a_stop_string_ends_the_answer_before_it(ask: Callable[..., Events], address: str, tiny_model: Path) -> None:
    arguments = ["generate", "--model", str(tiny_model), "--prompt", "abc", "--max-new-tokens", "9", "--join", address]
    [whole] = named(ask(*arguments), "done")
    stop = whole["text"][3]
    [done] = named(ask(*arguments, "--stop", stop), "done")
    assert done["finish_reason"] == "stop_string"
    assert done["text"] == whole["text"][: whole["text"].index(stop)]


def test_people_get_the_same_text(
    ask: Callable[..., Events], address: str, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "--model", str(tiny_model), "--max-new-tokens", "9", "--join", address]
    [done] = named(ask(*arguments, "--prompt", "-", stdin="abc"), "done")
    assert main([*arguments, "--prompt", "abc"]) == 0
    shown = capfd.readouterr()
    assert shown.out.rstrip("\n") == done["text"].rstrip("\n")
    assert "route: " in shown.err
    assert "9 tokens, " in shown.err


def test_chat_keeps_the_conversation(ask: Callable[..., Events], address: str, tiny_model: Path) -> None:
    arguments = ["chat", "--model", str(tiny_model), "--max-new-tokens", "3", "--join", address]
    events = ask(*arguments, stdin="a\n\nb\n/reset\na\n/what\n/quit\nnever\n")
    first, second, again = named(events, "done")
    assert again["ids"] == first["ids"]
    # The session is made at the first turn and after the reset, not in between.
    told = [event["event"] for event in events if event["event"] in ("route", "done")]
    assert told == ["route", "done", "done", "route", "done"]
    assert len(second["ids"]) == 3


def test_chat_goes_on_after_a_turn_that_failed(ask: Callable[..., Events], address: str, tiny_model: Path) -> None:
    arguments = ["chat", "--model", str(tiny_model), "--max-new-tokens", "3", "--join", address]
    events = ask(*arguments, stdin="x" * CONTEXT_TOKENS + "\na\n")
    [error], [done] = named(events, "error"), named(events, "done")
    assert error["code"] == "prompt-too-long"
    assert len(done["ids"]) == 3


def test_status_shows_who_holds_what(ask: Callable[..., Events], address: str) -> None:
    [status] = ask("status", "--join", address)
    tiny, other = sorted(status["models"], key=lambda model: str(model["model"]["name"]), reverse=True)
    assert (tiny["model"]["name"], other["model"]["name"]) == ("tiny-llama", "other-llama")
    assert (tiny["num_blocks"], tiny["available"], tiny["gaps"]) == (BLOCKS, True, [])
    assert (other["available"], other["gaps"]) == (False, [[0, 1], [3, 4]])
    assert [server["blocks"] for server in tiny["servers"]] == [[0, 2], [2, BLOCKS]]
    assert all(server["confirmed"] and server["state"] == "online" for server in tiny["servers"])


def test_status_watches_until_told_to_stop(address: str) -> None:
    with Program("status", "--watch", "--join", address) as program:
        program.wait_for("status")
        program.wait_for("status")
        program.interrupt()
        assert program.finish() == 130
        check_events(program.events)


def test_ctrl_c_in_a_chat_stops_the_answer_then_the_program(address: str, tiny_model: Path) -> None:
    person, terminal = pty.openpty()
    arguments = ["chat", "--model", str(tiny_model), "--max-new-tokens", LONG, "--join", address, "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "swarmnode.node.cli.main", *arguments],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def read_until(name: str) -> list[str]:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(json.loads(line)["event"])
            if seen[-1] == name:
                return seen
        raise AssertionError(f"ended before {name!r}: {seen[-5:]}")

    with process:
        try:
            os.write(person, b"a\n")
            read_until("token")
            process.send_signal(signal.SIGINT)
            os.write(person, b"b\n")
            # The first answer has no end; the second begins with a route of its own.
            assert "done" not in read_until("route")
            read_until("token")
            process.send_signal(signal.SIGINT)
            os.write(person, b"/quit\n")
            out, err = process.communicate(timeout=END_SECONDS)
        finally:
            process.kill()
            os.close(person)
            os.close(terminal)
    assert process.returncode == 0
    assert {json.loads(line)["event"] for line in out.splitlines()} <= {"token"}
    assert "Traceback" not in err


@pytest.mark.parametrize("phase", ["listening", "progress", "ready"])
def test_ctrl_c_in_every_phase_of_serving(
    ask: Callable[..., Events], address: str, tiny_model: Path, phase: str
) -> None:
    with serve(address, str(tiny_model), (0, 1)) as server:
        server.wait_for(phase)
        server.interrupt()
        assert server.finish() == 130
        assert server.events[-1]["code"] == "interrupted"
        assert server.log == ""
        check_events(server.events)
    [status] = ask("status", "--join", address)
    servers = [server for model in status["models"] for server in model["servers"]]
    assert not [server for server in servers if server["blocks"] == [0, 1] and server["confirmed"]]


def test_ctrl_c_in_an_answer(address: str, tiny_model: Path) -> None:
    arguments = ["generate", "--model", str(tiny_model), "--prompt", "a", "--max-new-tokens", LONG, "--join", address]
    with Program(*arguments) as program:
        program.wait_for("token")
        program.interrupt()
        assert program.finish() == 130
        assert program.events[-1]["code"] == "interrupted"
        assert program.log == ""


def test_ctrl_c_while_dialling() -> None:
    with socket.socket() as silent:  # accepts, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with Program("status", "--join", f"/ip4/127.0.0.1/tcp/{port}/p2p/{create_identity().peer}") as program:
            caller, _ = silent.accept()
            program.interrupt()
            assert program.finish() == 130
            assert program.log == ""
        caller.close()


def test_a_bootstrap_node_keeps_its_address_and_ends_well() -> None:
    addresses = []
    for _ in range(2):
        program, address = bootstrap()
        with program:
            addresses.append(address.partition("/p2p/")[2])
            program.process.terminate()
            assert program.finish() == 0
            assert program.log == ""
    assert addresses[0] == addresses[1]
