"""What goes wrong is said in one sentence with what to do next: each case with its code, exit code and message."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.tiny_folder import CONTEXT_TOKENS, make_tiny_model
from swarmnode.models.tensor_writer import TensorWriter
from swarmnode.node.identity import create_identity

Events = list[dict[str, Any]]
Told = Callable[..., tuple[int, Events]]

LOOPBACK = ("--listen", "/ip4/127.0.0.1/tcp/0", "--no-mdns")


def closed_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def nobody() -> str:
    return f"/ip4/127.0.0.1/tcp/{closed_port()}/p2p/{create_identity().peer}"


def check(found: tuple[int, Events], code: str, exit_code: int, *words: str) -> None:
    """The command failed in this way, and its sentence holds these words."""
    returned, events = found
    error = events[-1]
    assert (error["event"], error["code"], returned) == ("error", code, exit_code), error
    for word in words:
        assert word in error["message"] + " " + error["hint"], error
    assert error["message"].endswith((".", "…"))
    assert error["hint"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize("command", [("generate", "--prompt", "x"), ("status",), ("serve",), ("bootstrap",), ("chat",)])
def test_no_peer_reachable(told: Told, command: tuple[str, ...]) -> None:
    address = nobody()
    listen = LOOPBACK if command[0] in ("serve", "bootstrap") else ()
    check(told(*command, *listen, "--join", address), "no-peers", 4, address)


@pytest.mark.parametrize("command", [("generate", "--prompt", "x"), ("chat",)])
def test_nobody_to_ask(told: Told, command: tuple[str, ...]) -> None:
    check(told(*command, "--no-mdns"), "no-peers", 4, "There is no peer to ask", "--join")


@pytest.mark.parametrize(
    "address", ["nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/99999/p2p/12D3KooX", "127.0.0.1:4737"]
)
def test_an_address_that_is_none(told: Told, address: str) -> None:
    check(told("status", "--join", address), "bad-input", 2, address)


def test_an_address_to_listen_on_that_is_none(told: Told) -> None:
    check(told("bootstrap", "--listen", "4737", "--no-mdns"), "bad-input", 2, "4737")


@pytest.mark.parametrize(
    ("blocks", "words"),
    [("2:5", ["2:5", "0:4"]), ("9:10", ["9:10", "0:4"]), ("2:2", ["2:2", "empty", "0:4"]), ("x:y", ["x:y", "0:4"])],
)
def test_blocks_that_the_model_does_not_have(told: Told, tiny_model: Path, blocks: str, words: list[str]) -> None:
    check(told("serve", str(tiny_model), "--blocks", blocks, *LOOPBACK), "bad-range", 2, *words)


def test_blocks_that_the_bundled_model_does_not_have(told: Told) -> None:
    check(told("serve", "--blocks", "20:40", *LOOPBACK), "bad-range", 2, "20:40", "0:30")


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        # No process that has imported torch is so small.
        (
            ("--blocks", "auto", "--max-memory", "1MiB"),
            "out-of-memory",
            ["Not even one block", "--max-memory 1 MiB"],
        ),
        (("--max-memory", "1MiB"), "out-of-memory", ["Not even one block", "of weights", "for a cache of 16384"]),
        (
            ("--blocks", "1:3", "--max-memory", "1MiB"),
            "out-of-memory",
            ["Blocks 1:3", "leaves 0 MiB", "--blocks auto"],
        ),
        (("--num-blocks", "5"), "bad-range", ["4 blocks, not 5", "--num-blocks 4"]),
        (
            ("--cache-tokens", "9", "--cache-memory", "1GiB"),
            "bad-input",
            ["--cache-tokens", "--cache-memory", "Leave one"],
        ),
        (
            ("--cache-memory", "64MiB", "--max-memory", "1MiB"),
            "out-of-memory",
            ["MiB for a cache of", "smaller --cache-memory"],
        ),
        (("--blocks", "0:2", "--cache-memory", "0MiB"), "bad-input", ["A cache of no memory"]),
        (("--num-blocks", "2", "--blocks", "0:2"), "bad-input", ["--blocks 0:2", "--num-blocks", "Leave one"]),
        (
            ("--blocks", "auto", "--cache-tokens", str(1 << 30)),
            "out-of-memory",
            ["1073741824 tokens", "--cache-tokens"],
        ),
    ],
)
def test_blocks_that_cannot_be_chosen(
    told: Told, tiny_model: Path, flags: tuple[str, ...], code: str, words: list[str]
) -> None:
    check(told("serve", str(tiny_model), *flags, *LOOPBACK), code, 3 if code == "out-of-memory" else 2, *words)


@pytest.mark.slow
def test_blocks_that_nobody_serves(told: Told, address: str, other_tiny_model: Path) -> None:
    found = told("generate", "--model", str(other_tiny_model), "--prompt", "x", "--join", address)
    check(found, "blocks-missing", 4, "0:1", "3:4")


def test_a_model_that_does_not_exist(told: Told, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    check(told("serve", missing, *LOOPBACK), "model-not-found", 2, missing)


@pytest.mark.slow
def test_a_model_that_the_swarm_does_not_serve(told: Told, address: str) -> None:
    found = told("generate", "--model", "SmolLM2-135M-Instruct", "--prompt", "x", "--join", address)
    check(found, "blocks-missing", 4, "SmolLM2-135M-Instruct")


@pytest.mark.slow
def test_several_models_and_none_named(told: Told, address: str) -> None:
    check(told("generate", "--prompt", "x", "--join", address), "bad-input", 2, "tiny-llama", "other-llama")


@pytest.mark.slow
def test_other_weights_under_the_same_name(told: Told, address: str, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "tiny-llama", seed=3)
    found = told("generate", "--model", str(other), "--prompt", "x", "--join", address)
    check(found, "model-mismatch", 4, "tiny-llama")


@pytest.mark.slow
def test_a_prompt_longer_than_the_context(told: Told, address: str, tiny_model: Path) -> None:
    prompt = "x" * (CONTEXT_TOKENS + 1)
    found = told("generate", "--model", str(tiny_model), "--prompt", prompt, "--join", address)
    check(found, "prompt-too-long", 2, str(CONTEXT_TOKENS), str(len(prompt)))


def test_a_port_in_use(told: Told) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = told("bootstrap", "--listen", f"/ip4/127.0.0.1/tcp/{port}", "--no-mdns")
        check(found, "port-in-use", 3, str(port), "--listen")


def test_a_key_that_others_can_read(told: Told, tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    key.write_bytes(b"x" * 68)
    key.chmod(0o644)
    check(told("bootstrap", *LOOPBACK, "--identity", str(key)), "bad-identity", 3, str(key), "chmod 600")


def test_a_key_that_is_none(told: Told, tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    key.write_bytes(b"x" * 68)
    key.chmod(0o600)
    check(told("bootstrap", *LOOPBACK, "--identity", str(key)), "bad-identity", 3, str(key))


def test_a_key_that_is_a_folder(told: Told, tmp_path: Path) -> None:
    check(told("bootstrap", *LOOPBACK, "--identity", str(tmp_path)), "bad-identity", 3, str(tmp_path), "directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_key_that_we_may_not_read(told: Told, tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    key.write_bytes(b"x" * 68)
    key.chmod(stat.S_IWUSR)
    check(told("bootstrap", *LOOPBACK, "--identity", str(key)), "bad-identity", 3, str(key), "ermission denied")


def test_weights_that_are_cut_short(told: Told, tiny_model: Path, tmp_path: Path) -> None:
    for file in tiny_model.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[:-1000] if file.suffix == ".safetensors" else data)
    check(told("serve", str(tmp_path), *LOOPBACK), "checkpoint-broken", 3, "model.safetensors")


def test_no_room_for_a_conversion(told: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(total=10**9, used=10**9, free=0))
    check(told("serve", "--blocks", "0:1", *LOOPBACK), "disk-full", 3, str(tmp_path), "0 MB are free")


def test_the_disk_fills_up_while_converting(told: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(TensorWriter, "write", refuse)
    check(told("serve", "--blocks", "0:1", *LOOPBACK), "disk-full", 3, str(tmp_path), "no room left")
    assert not list((tmp_path / "swarmnode" / "converted").glob("*.unfinished"))
