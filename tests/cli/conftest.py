"""What the tests of the command line share: a tiny model in a folder, and commands run in this process."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.events import check_events
from support.nodes import nodes
from support.tiny_folder import BLOCKS, make_tiny_model
from swarmnode.node.cli.main import main

Events = list[dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("one") / "tiny-llama", seed=1)


@pytest.fixture(scope="session")
def other_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape with another name and other weights."""
    return make_tiny_model(tmp_path_factory.mktemp("two") / "other-llama", seed=2)


@pytest.fixture(scope="session")
def address(tiny_model: Path, other_tiny_model: Path) -> Iterator[str]:
    """A swarm in which two servers share the tiny model, and a third one has blocks 1:3 of another."""
    with nodes([(tiny_model, (0, 2)), (tiny_model, (2, BLOCKS)), (other_tiny_model, (1, 3))]) as found:
        yield found


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The program settles logging for its whole process, in which other tests look at what is logged."""
    loggers = [logging.getLogger(), logging.getLogger("swarmnode")]
    levels = [logger.level for logger in loggers]
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., tuple[int, Events]]]:
    """Runs a command with `--json` in this process: its exit code and its events."""
    own_input = os.dup(0)  # the program takes standard input for its whole process, too

    def run(*arguments: str, stdin: str = "") -> tuple[int, Events]:
        (tmp_path / "stdin").write_text(stdin, encoding="utf-8")
        with (tmp_path / "stdin").open(encoding="utf-8") as file:
            os.dup2(file.fileno(), 0)
            monkeypatch.setattr("sys.stdin", file)
            code = main([*arguments, "--json"])
        events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        check_events(events)
        return code, events

    yield run
    os.dup2(own_input, 0)
    os.close(own_input)
