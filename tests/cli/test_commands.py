"""The commands together, as real processes: a tiny model served, asked, talked with, looked at, interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from support.programs import Program, serve, swarm
from support.tiny_folder import BLOCKS
from swarmnode.node.cli.events import EVENTS
from swarmnode.node.identity import create_identity

END_SECONDS = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def address(tiny_model: Path) -> Iterator[str]:
    """A swarm of two servers that share the tiny model."""
    with ExitStack() as stack:
        home = stack.enter_context(pytest.MonkeyPatch.context())
        home.setenv("XDG_STATE_HOME", str(tiny_model.parent / "state"))
        found, servers = stack.enter_context(swarm(str(tiny_model), [(0, 2), (2, BLOCKS)]))
        yield found
        for server in servers:
            check_events(server.events)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is what a Python type becomes in JSON."""
    if isinstance(hint, types.UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        wanted = {each.name for each in dataclasses.fields(hint)}
        return isinstance(value, dict) and set(value) == wanted and all(fits(value[n], hints[n]) for n in wanted)
    if get_origin(hint) is tuple:
        one, two = get_args(hint)
        sides = [one] * len(value) if two is Ellipsis else [one, two]
        return isinstance(value, list) and len(value) == len(sides) and all(map(fits, value, sides))
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return type(value) is hint or (value is None and hint is type(None))


def check_events(events: list[dict[str, Any]]) -> None:
    """Every event is exactly what docs/JSON.md says."""
    classes = {event.event: event for event in EVENTS}
    for event in events:
        fields = {name: value for name, value in event.items() if name != "event"}
        assert fits(fields, classes[event["event"]]), event


def ask(*arguments: str, stdin: str | None = None) -> list[dict[str, Any]]:
    """The events of a command that is to end well."""
    done = subprocess.run(
        [sys.executable, "-m", "swarmnode.node.cli.main", *arguments, "--json"],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    events = [json.loads(line) for line in done.stdout.splitlines()]
    check_events(events)
    return events


def named(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


def test_generate_tells_route_tokens_and_end(address: str, tiny_model: Path) -> None:
    arguments = ["generate", "--model", str(tiny_model), "--prompt", "abc", "--max-new-tokens", "9", "--join", address]
    events = ask(*arguments)
    tokens, [route], [done] = named(events, "token"), named(events, "route"), named(events, "done")
    assert [hop["blocks"] for hop in route["hops"]] == [[0, 2], [2, BLOCKS]]
    assert done["route"] == route["hops"]
    assert [token["id"] for token in tokens] == done["ids"]
    assert "".join(token["text"] for token in tokens) == done["text"]
    assert (len(done["ids"]), done["finish_reason"]) == (9, "length")
    assert named(ask(*arguments), "done")[0]["ids"] == done["ids"]


def test_people_get_the_same_text(address: str, tiny_model: Path) -> None:
    arguments = ["generate", "--model", str(tiny_model), "--prompt", "-", "--max-new-tokens", "9", "--join", address]
    [done] = named(ask(*arguments, stdin="abc"), "done")
    shown = subprocess.run(
        [sys.executable, "-m", "swarmnode.node.cli.main", *arguments],
        input=b"abc",
        capture_output=True,
        timeout=END_SECONDS,
        check=True,
    )
    assert shown.stdout.decode().rstrip("\n") == done["text"].rstrip("\n")
    assert b"route: " in shown.stderr
    assert b"9 tokens" in shown.stderr


def test_a_broken_pipe_is_quiet(address: str, tiny_model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ["generate", "--model", str(tiny_model), "--prompt", "abc", "--join", address]
    done = subprocess.run(
        [sys.executable, "-m", "swarmnode.node.cli.main", *arguments, "--quiet"],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=END_SECONDS,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_chat_keeps_the_conversation(address: str, tiny_model: Path) -> None:
    arguments = ["chat", "--model", str(tiny_model), "--max-new-tokens", "3", "--join", address]
    events = ask(*arguments, stdin="a\n\nb\n/reset\na\n/quit\nnever\n")
    first, second, again = named(events, "done")
    assert again["ids"] == first["ids"]
    # The session is made at the first turn and after the reset, not in between.
    assert [event["event"] for event in events if event["event"] in ("route", "done")] == [
        "route",
        "done",
        "done",
        "route",
        "done",
    ]
    assert len(second["ids"]) == 3


def test_chat_goes_on_after_a_turn_that_failed(address: str, tiny_model: Path) -> None:
    arguments = ["chat", "--model", str(tiny_model), "--max-new-tokens", "3", "--join", address]
    events = ask(*arguments, stdin="x" * 100 + "\na\n")
    [error], [done] = named(events, "error"), named(events, "done")
    assert error["code"] == "prompt-too-long"
    assert len(done["ids"]) == 3


def test_ctrl_c_in_a_chat_stops_the_answer_then_the_program(address: str, tiny_model: Path) -> None:
    person, terminal = pty.openpty()
    arguments = ["chat", "--model", str(tiny_model), "--max-new-tokens", "55", "--join", address, "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "swarmnode.node.cli.main", *arguments],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        os.write(person, b"a\n")
        seen = []
        for line in process.stdout:
            seen.append(json.loads(line)["event"])
            if seen[-1] == "token":
                break
        process.send_signal(signal.SIGINT)
        os.write(person, b"b\n")
        for line in process.stdout:
            seen.append(json.loads(line)["event"])
            if seen.count("done") == 1:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=END_SECONDS)
        assert process.returncode == 130
        assert json.loads(out.splitlines()[-1])["code"] == "interrupted"
        assert "Traceback" not in err
    os.close(person)
    os.close(terminal)


def test_status_shows_who_holds_what(address: str, tiny_model: Path) -> None:
    [status] = ask("status", "--join", address)
    [model] = status["models"]
    assert model["model"]["name"] == tiny_model.name
    assert (model["num_blocks"], model["available"], model["gaps"]) == (BLOCKS, True, [])
    assert [server["blocks"] for server in model["servers"]] == [[0, 2], [2, BLOCKS]]
    assert all(server["confirmed"] and server["state"] == "online" for server in model["servers"])


def test_status_watches_until_told_to_stop(address: str) -> None:
    with Program("status", "--watch", "--join", address) as program:
        program.wait_for("status")
        program.wait_for("status")
        program.interrupt()
        assert program.finish() == 130
        check_events(program.events)


@pytest.mark.parametrize("phase", ["listening", "progress", "ready"])
def test_ctrl_c_in_every_phase_of_serving(address: str, tiny_model: Path, phase: str) -> None:
    with serve(address, str(tiny_model), (0, 1)) as server:
        server.wait_for(phase)
        server.interrupt()
        assert server.finish() == 130
        assert server.events[-1]["code"] == "interrupted"
        assert server.log == ""


def test_sigterm_is_a_good_end_for_a_server(address: str, tiny_model: Path) -> None:
    with serve(address, str(tiny_model), (0, 1)) as server:
        server.wait_for("ready")
        server.process.terminate()
        assert server.finish() == 0
    [status] = ask("status", "--join", address)
    # It has said good-bye: nobody waits for its record to expire.
    assert [server["blocks"] for server in status["models"][0]["servers"]] == [[0, 2], [2, BLOCKS]]


@pytest.mark.parametrize("phase", ["progress", "route", "token"])
def test_ctrl_c_in_every_phase_of_asking(address: str, tiny_model: Path, phase: str) -> None:
    arguments = ["generate", "--model", str(tiny_model), "--prompt", "a", "--max-new-tokens", "60", "--join", address]
    with Program(*arguments) as program:
        program.wait_for(phase)
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


def test_the_servers_key_is_its_own_and_stays(address: str, tiny_model: Path) -> None:
    peers = []
    for _ in range(2):
        with serve(address, str(tiny_model), (0, 1)) as server:
            peers.append(server.wait_for("listening")["peer_id"])
    assert peers[0] == peers[1]
