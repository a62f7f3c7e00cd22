"""`swarmnode swarm-key new`: a key that only its owner can read, never in place of another, and what is said of it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.programs import bootstrap
from swarmnode.node.cli.main import main
from swarmnode.node.membership import load_swarm_key

Told = Callable[..., tuple[int, list[dict[str, Any]]]]


def test_a_key_is_made_and_shown_to_nobody(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "new" / "swarm.key"
    assert told("swarm-key", "new", str(path)) == (0, [{"event": "swarm_key", "file": str(path)}])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["swarm.key"]
    assert len(load_swarm_key(path).secret) == 32


def test_a_key_is_never_replaced(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    path.write_text("precious")
    code, [error] = told("swarm-key", "new", str(path))
    assert (code, error["code"]) == (2, "bad-input")
    assert "never overwritten" in error["message"]
    assert [each.name for each in tmp_path.iterdir() if each.name != "stdin"] == ["swarm.key"]
    assert path.read_text() == "precious"


def test_people_are_told_what_to_do_next(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["swarm-key", "new"]) == 0
    said = capsys.readouterr()
    assert "--swarm-key swarm.key" in said.err
    assert load_swarm_key(tmp_path / "swarm.key").secret.hex() not in said.err + said.out


def test_what_to_do_must_be_said(told: Told) -> None:
    code, [error] = told("swarm-key")
    assert code == 2
    assert "swarmnode swarm-key new FILE" in error["hint"]
    code, [error] = told("swarm-key", "show")
    assert (code, error["message"]) == (2, "verb must be one of new, not 'show'.")


@pytest.mark.parametrize("flag", ["--swarm-key", "--allow-peer"])
def test_a_file_that_is_not_there_is_said_before_anything_starts(told: Told, tmp_path: Path, flag: str) -> None:
    code, [error] = told("status", "--no-mdns", flag, str(tmp_path / "nowhere"))
    assert (code, error["code"]) == (2, "bad-input")
    assert "no such file" in error["message"]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_joining_a_private_swarm(told: Told, tmp_path: Path) -> None:
    for name in ("ours", "other"):
        assert told("swarm-key", "new", str(tmp_path / name))[0] == 0
    ours, other = str(tmp_path / "ours"), str(tmp_path / "other")
    program, address = bootstrap("--swarm-key", ours)
    with program:
        code, [status] = told("status", "--join", address, "--swarm-key", ours)
        assert (code, status["event"], status["peers"]) == (0, "status", 1)
        code, [error] = told("status", "--join", address)
        assert (code, error["code"]) == (5, "peer-refused")
        assert "it belongs to a private swarm, and this node has no swarm key" in error["message"]
        code, [error] = told("status", "--join", address, "--swarm-key", other)
        assert (code, error["code"]) == (5, "peer-refused")
        assert "it has another swarm key than this node" in error["message"]
