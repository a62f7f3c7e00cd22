"""One flag: its names on the command line, in the environment and in the config file, and how its value is read.

Knows neither which flags there are (`settings.py`) nor where values come from (`config.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from swarmnode.errors import BadInput

from .sizes import parse_size

__all__ = [
    "ENV_PREFIX",
    "Flag",
    "Value",
    "choice",
    "count",
    "file",
    "number",
    "one_of",
    "size",
    "switch",
    "text",
    "texts",
    "words",
]

ENV_PREFIX: Final = "SWARMNODE_"

# `size` is an amount of memory, in bytes once it is read. `words` is a list of values that hold no blanks (addresses);
# `texts` is a list of any texts (stop strings).
Kind = Literal["text", "file", "count", "number", "size", "switch", "choice", "words", "texts"]
Value: TypeAlias = str | int | float | bool | Path | tuple[str, ...] | None

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off", ""})


@dataclass(frozen=True, slots=True)
class Flag:
    """One row of the table of settings.

    Attributes:
        name: with dashes, as on the command line without the leading `--`.
        commands: the commands that take it.
        positional: those of them where it is an argument instead of a `--flag`.
        low, high: bounds of a number, both allowed.
    """

    kind: Kind
    commands: tuple[str, ...]
    help: str
    default: Value = None
    metavar: str = ""
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    short: str = ""
    positional: tuple[str, ...] = ()
    name: str = ""

    def named(self, field_name: str) -> Flag:
        """The same flag under the name of its field."""
        return replace(self, name=field_name.replace("_", "-"))

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.field.upper()

    @property
    def spelled(self) -> str:
        """As it stands on the command line, which for what is never a flag there is the name alone."""
        return self.name if set(self.positional) == set(self.commands) else f"--{self.name}"

    @property
    def takes_many(self) -> bool:
        return self.kind in ("words", "texts")

    @property
    def shown_default(self) -> str:
        """The default for people; empty where there is none to speak of."""
        return "" if self.default is None or self.default is False or self.default == () else str(self.default)

    def read_text(self, given: str, origin: str) -> Value:
        """The value of a flag or an environment variable. Raises `BadInput` naming `origin`."""
        if self.kind == "switch":
            if given.strip().lower() in _TRUE | _FALSE:
                return given.strip().lower() in _TRUE
            raise self._bad(origin, given, "yes or no")
        if self.kind in _NUMBERS:
            read, wanted = _NUMBERS[self.kind]
            try:
                return self._bounded(read(given), origin)
            except ValueError:
                raise self._bad(origin, given, wanted) from None
        if self.kind == "words":
            return tuple(given.replace(",", " ").split())
        if self.kind == "texts":
            return (given,)
        return self._string(given, origin)

    def read_toml(self, given: object, origin: str) -> Value:
        """The value under a key of the config file. Raises `BadInput` naming `origin`."""
        match self.kind, given:
            case "switch", bool():
                return given
            case ("count", int()) | ("number", int() | float()) if not isinstance(given, bool):
                assert isinstance(given, int | float)
                return self._bounded(float(given) if self.kind == "number" else given, origin)
            case "words" | "texts" | "size", str():
                return self.read_text(given, origin)
            case "words" | "texts", list() if all(isinstance(item, str) for item in given):
                return tuple(given)
            case "text" | "file" | "choice", str():
                return self._string(given, origin)
        raise self._bad(origin, given, _TOML_WORDS[self.kind])

    def _string(self, given: str, origin: str) -> Value:
        if self.kind == "choice" and given not in self.choices:
            raise self._bad(origin, given, f"one of {', '.join(self.choices)}")
        return Path(given).expanduser() if self.kind == "file" else given

    def _bounded(self, value: float, origin: str) -> Value:
        if self.low <= value <= self.high:  # false for NaN too
            return value
        above = "" if self.high == math.inf else f" and at most {_plain(self.high)}"
        raise self._bad(origin, value, f"at least {_plain(self.low)}{above}")

    def _bad(self, origin: str, given: object, wanted: str) -> BadInput:
        shown = repr(given) if isinstance(given, str) else str(given)
        return BadInput(f"{origin} must be {wanted}, not {shown}.", hint=f"{origin}: {self.help}.")


_NUMBERS: Final[dict[Kind, tuple[Callable[[str], float], str]]] = {
    "count": (int, "a whole number"),
    "number": (float, "a number"),
    "size": (parse_size, "a size such as 6GiB or 500MB"),
}

_TOML_WORDS: Final[dict[Kind, str]] = {
    "text": "a string",
    "file": "a string",
    "choice": "a string",
    "count": "a whole number",
    "number": "a number",
    "size": "a string such as '6GiB'",
    "switch": "true or false",
    "words": "a list of strings",
    "texts": "a list of strings",
}


def _plain(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else str(bound)


# The constructors below stand where a dataclass field has its default, so they return Any as `dataclasses.field` does.


def _row(flag: Flag) -> Any:
    return field(default=flag.default, metadata={"flag": flag})


def text(
    commands: tuple[str, ...],
    help: str,
    *,
    metavar: str,
    default: str | None = None,
    positional: tuple[str, ...] = (),
) -> Any:
    return _row(Flag("text", commands, help, default=default, metavar=metavar, positional=positional))


def file(commands: tuple[str, ...], help: str, *, metavar: str, positional: tuple[str, ...] = ()) -> Any:
    return _row(Flag("file", commands, help, metavar=metavar, positional=positional))


def words(commands: tuple[str, ...], help: str, *, metavar: str) -> Any:
    return _row(Flag("words", commands, help, default=(), metavar=metavar))


def texts(commands: tuple[str, ...], help: str, *, metavar: str = "TEXT") -> Any:
    return _row(Flag("texts", commands, help, default=(), metavar=metavar))


def switch(commands: tuple[str, ...], help: str, *, short: str = "") -> Any:
    return _row(Flag("switch", commands, help, default=False, short=short))


def choice(commands: tuple[str, ...], help: str, choices: tuple[str, ...]) -> Any:
    """The first choice is the default."""
    return _row(Flag("choice", commands, help, default=choices[0], choices=choices))


def one_of(commands: tuple[str, ...], help: str, choices: tuple[str, ...]) -> Any:
    """A word that stands behind the command itself; nobody chooses for who leaves it out."""
    return _row(Flag("choice", commands, help, choices=choices, positional=commands))


def count(
    commands: tuple[str, ...], help: str, *, default: int | None = None, low: float = -math.inf, high: float = math.inf
) -> Any:
    return _row(Flag("count", commands, help, default=default, metavar="N", low=low, high=high))


def size(commands: tuple[str, ...], help: str) -> Any:
    return _row(Flag("size", commands, help, metavar="SIZE"))


def number(commands: tuple[str, ...], help: str, *, default: float) -> Any:
    return _row(Flag("number", commands, help, default=default, metavar="X"))
