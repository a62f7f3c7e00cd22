"""docs/OPERATING.md names every flag with its environment variable, key and default, and every error code."""

from __future__ import annotations

import re
from pathlib import Path

from swarmnode import errors
from swarmnode.node.cli.bootstrap import DEFAULT_BOOTSTRAP_LISTEN
from swarmnode.node.flags import Flag
from swarmnode.node.net.circuits import port_of
from swarmnode.node.settings import COMMANDS, FLAGS

PAGE = (Path(__file__).parents[2] / "docs" / "OPERATING.md").read_text(encoding="utf-8")


def row(flag: Flag) -> str:
    """The row of a flag as the page must have it."""
    spelled = f"--{flag.name}" if flag.kind == "switch" else f"--{flag.name} {flag.metavar or 'CHOICE'}"
    if flag.positional:
        spelled = f"{spelled}` (`{', '.join(flag.positional)}`: `{flag.metavar}"
    spelled = f"`{spelled}`" + (")" if flag.positional else "")
    commands = "all" if set(flag.commands) == set(COMMANDS) else ", ".join(flag.commands)
    default = f"`{flag.shown_default}`" if flag.shown_default else "–"
    key = "–" if flag.name == "config" else f"`{flag.name}`"
    return f"| {spelled} | `{flag.env}` | {key} | {commands} | {default} |"


def test_every_flag_has_its_row() -> None:
    listed = [line for line in PAGE.splitlines() if re.match(r"\| `--", line)]
    assert listed == [row(flag) for flag in FLAGS if flag.spelled.startswith("--")]


def test_every_error_code_is_explained() -> None:
    listed = re.findall(r"^\| `([a-z-]+)` \| (\d) \| \S", PAGE, re.MULTILINE)
    classes = [getattr(errors, name) for name in errors.__all__]
    leaves = [cls for cls in classes if not any(other is not cls and issubclass(other, cls) for other in classes)]
    refused = [errors.PeerRefused]  # the only inner class that is raised itself
    assert sorted(listed) == sorted((cls.code, str(cls.exit_code)) for cls in [*leaves, *refused])


def test_the_bootstrap_port_is_the_one_named() -> None:
    assert {port_of(addr) for addr in DEFAULT_BOOTSTRAP_LISTEN} == {4737}
    assert "4737" in PAGE
