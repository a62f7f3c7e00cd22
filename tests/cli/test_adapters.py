"""Adapters from the command line: a server with one, asked with and without, and what goes wrong in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from cli.test_errors import check
from support.programs import bootstrap, serve
from support.tiny_adapter import save_adapter
from support.tiny_folder import BLOCKS

Told = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def poet(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = AutoModelForCausalLM.from_pretrained(tiny_model)
    return save_adapter(whole, tmp_path_factory.mktemp("adapters") / "poet", ["q_proj", "down_proj"])


@pytest.fixture(scope="module")
def adapted(tiny_model: Path, poet: Path) -> Iterator[str]:
    """A swarm of one server with an adapter."""
    program, address = bootstrap()
    with program, serve(address, str(tiny_model), (0, BLOCKS), "--adapter", f"poet={poet}") as server:
        server.wait_for("ready")
        yield address


@pytest.mark.slow
def test_an_adapter_is_served_shown_and_chosen(told: Told, adapted: str, tiny_model: Path) -> None:
    ask = ["generate", "--model", str(tiny_model), "--prompt", "abc", "--max-new-tokens", "9", "--join", adapted]
    ids = [told(*ask, *adapter)[1][-1]["ids"] for adapter in ((), ("--adapter", "poet"), ("--adapter", "poet"))]
    assert ids[0] != ids[1] == ids[2]
    _, events = told("status", "--join", adapted)
    [shown] = events[-1]["models"][0]["servers"][0]["adapters"]
    assert shown.startswith("poet@")
    assert told(*ask, "--adapter", shown)[1][-1]["ids"] == ids[1]
    check(told(*ask, "--adapter", "bard"), "adapter-missing", 4, f"an adapter 'bard'. There is {shown}")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("generate", "--prompt", "x", "--adapter", "a", "--adapter", "b"), "with one adapter"),
        (("generate", "--prompt", "x", "--adapter", "a=./a"), "says where an adapter is"),
        (("serve", "--adapter", "./a"), "named and placed"),
        (("serve", "--adapter", "a=x", "--adapter", "a=y"), "Two adapters are called a"),
    ],
)
def test_what_makes_no_sense(told: Told, command: tuple[str, ...], words: str) -> None:
    check(told(*command, "--no-mdns"), "bad-input", 2, words)
