"""Every command in the README and in OPERATING is one that the program understands, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from swarmnode.node.cli.arguments import parse_arguments
from swarmnode.node.config import resolve
from swarmnode.node.flags import ENV_PREFIX
from swarmnode.node.settings import COMMANDS, FLAGS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "OPERATING.md", ROOT / "docs" / "JSON.md"]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}

# Commands stand on lines of their own, or in backticks inside a sentence, or behind a path in the systemd unit.
LINES = [
    (page, found)
    for page, text in TEXT.items()
    for found in [
        *re.findall(r"^ {4,}swarmnode (\S.*)$", text, re.MULTILINE),
        *re.findall(r"`swarmnode ([^`]+)`", text),
        *re.findall(r"/swarmnode (serve .*)$", text, re.MULTILINE),
    ]
]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page.name}: {line[:50]}" for page, line in LINES])
def test_every_command_parses(page: Path, line: str) -> None:
    words = shlex.split(line.partition("     #")[0].replace(" …", ""))
    if "COMMAND" in words or "--help" in words:
        return
    if words[-1] in ("--join", "--prompt"):  # the value was left out in the sentence
        words.append("value")
    command, given = parse_arguments(words)
    given.pop("config", None)
    assert resolve(command, given, {"XDG_CONFIG_HOME": "/nonexistent"}).command in COMMANDS


def test_commands_were_found() -> None:
    assert {line.split()[0] for page, line in LINES if page.name == "README.md"} >= set(COMMANDS) - {"demo"}


def test_the_config_file_of_the_page_is_one(tmp_path: Path) -> None:
    [config] = re.findall(r"```toml\n(.*?)```", TEXT[ROOT / "docs" / "OPERATING.md"], re.DOTALL)
    (tmp_path / "page.toml").write_text(config, encoding="utf-8")
    settings = resolve("serve", {"config": [str(tmp_path / "page.toml")]}, {})
    assert (settings.blocks, settings.join) == ("0:10", tuple(tomllib.loads(config)["join"]))


def test_every_variable_exists() -> None:
    known = {flag.env for flag in FLAGS}
    for text in TEXT.values():
        assert set(re.findall(rf"\b{ENV_PREFIX}[A-Z_]+", text)) <= known


def test_the_library_example_is_python() -> None:
    [example] = re.findall(r"```python\n(.*?)```", TEXT[ROOT / "README.md"], re.DOTALL)
    compile(example, "README.md", "exec")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT[page]):
        if not target.startswith("https://"):
            assert (page.parent / target.partition("#")[0]).exists(), target
