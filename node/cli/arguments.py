"""The command line's grammar, made from the table of settings. Reads no file and no environment."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from swarmnode.errors import BadInput
from swarmnode.node.flags import Flag
from swarmnode.node.settings import COMMANDS, FLAGS, flags_of

__all__ = ["make_parser", "parse_arguments"]

_EPILOG: Final = """\
Every flag can also be set by an environment variable (--cache-tokens is SWARMNODE_CACHE_TOKENS) or in a config file
(cache-tokens = …). Flag before environment before file before default. `swarmnode COMMAND --help` says more.
"""


def parse_arguments(arguments: Sequence[str]) -> tuple[str, dict[str, list[str] | bool]]:
    """The command and what was given to it, by flag name. Raises `BadInput`; `SystemExit` after help or version."""
    found = vars(make_parser().parse_args(list(arguments)))
    command = found.pop("command", None)
    if command is None:
        raise BadInput("No command was given.", hint=f"One of: {', '.join(COMMANDS)}. See swarmnode --help.")
    given: dict[str, list[str] | bool] = {}
    for name, value in found.items():
        if value is not None:
            given[name] = [value] if isinstance(value, str) else value
    return command, given


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole program."""
    from swarmnode import __version__

    parser = _Parser(
        prog="swarmnode",
        description="Large language models run by peers that each hold a few blocks.",
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"swarmnode {__version__}")
    _add_flags(parser, [flag for flag in FLAGS if set(flag.commands) == set(COMMANDS)], "")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=_Parser)
    for command, purpose in COMMANDS.items():
        sub = commands.add_parser(
            command, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.", allow_abbrev=False
        )
        _add_flags(sub, flags_of(command), command)
    return parser


def _add_flags(parser: argparse.ArgumentParser, flags: Sequence[Flag], command: str) -> None:
    for flag in flags:
        # A flag of every command may stand before or after it: what was not given must leave no trace.
        options: dict[str, Any] = {"help": _help(flag), "default": argparse.SUPPRESS}
        if flag.kind == "switch":
            options["action"] = "store_true"
        else:
            options["metavar"] = f"{{{','.join(flag.choices)}}}" if flag.choices else flag.metavar
            if flag.takes_many:
                options["action"] = "append"
        if command in flag.positional:
            parser.add_argument(flag.name, nargs="?", **options)
        else:
            names = [flag.short, f"--{flag.name}"] if flag.short else [f"--{flag.name}"]
            parser.add_argument(*names, dest=flag.name, **options)


def _help(flag: Flag) -> str:
    default = f"; default: {flag.shown_default}" if flag.shown_default else ""
    return f"{flag.help}{default}".replace("%", "%%")


class _Parser(argparse.ArgumentParser):
    """argparse that raises our errors, so that a mistyped flag reads like every other error, `--json` included."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message[0].upper()}{message[1:]}.", hint=self._hint(message))

    def _hint(self, message: str) -> str:
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)|invalid choice: '([^']*)'", message)
        known = [*COMMANDS] if "invalid choice" in message else list(self._option_string_actions)
        if unknown is not None:
            # The parser of a command hands what it does not know up to the program's, which cannot know its flags.
            known += [f"--{flag.name}" for flag in FLAGS]
            close = difflib.get_close_matches(unknown[1] or unknown[2], known, n=1)
            if close:
                return f"Did you mean {close[0]}?"
        return f"See {self.prog} --help."
