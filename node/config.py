"""Which value of a setting counts: flag, else environment, else config file, else default. Starts nothing.

The config file is TOML: keys at the top are for every command, those in a `[command]` table for that one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from swarmnode.errors import BadInput

from .flags import Flag, Value
from .settings import COMMANDS, FLAGS, Settings, flags_of

__all__ = ["default_config_file", "resolve"]

MAX_CONFIG_BYTES: Final = 1 << 20

Given = Mapping[str, Sequence[str] | bool]


def default_config_file(environ: Mapping[str, str]) -> Path:
    """Where the config file is looked for when none is named."""
    folder = environ.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
    return Path(folder) / "swarmnode" / "config.toml"


def resolve(command: str, given: Given, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of one run of `command`.

    Args:
        given: what stood on the command line, by flag name: the texts in order, or True for a switch.
        environ: the environment; the process's own when None.

    Raises:
        BadInput: a value makes no sense, or the config file cannot be read or holds an unknown key.
    """
    environ = os.environ if environ is None else environ
    flags = {flag.name: flag for flag in flags_of(command)}
    values: dict[str, Value] = {}
    config_file = _from_flag_or_environment(flags["config"], given, environ)
    values.update(_from_config(command, config_file, environ))
    for flag in flags.values():
        value = _from_flag_or_environment(flag, given, environ)
        if value is not None:
            values[flag.field] = value
    return Settings(command=command, **values)  # type: ignore[arg-type]  # `read_*` return what the field holds


def _from_flag_or_environment(flag: Flag, given: Given, environ: Mapping[str, str]) -> Value:
    found = given.get(flag.name)
    if isinstance(found, bool):
        return found
    if found is not None:
        return _joined(flag, [flag.read_text(text, flag.spelled) for text in found])
    if environ.get(flag.env):  # set but empty counts as not set
        return flag.read_text(environ[flag.env], flag.env)
    return None


def _joined(flag: Flag, values: Sequence[Value]) -> Value:
    if not flag.takes_many:
        return values[-1]
    return tuple(item for value in values if isinstance(value, tuple) for item in value)


def _from_config(command: str, named: Value, environ: Mapping[str, str]) -> dict[str, Value]:
    file = named if isinstance(named, Path) else default_config_file(environ)
    if not isinstance(named, Path) and not file.exists():
        return {}
    tables = _read_toml(file)
    values = _read_table({k: v for k, v in tables.items() if not isinstance(v, dict)}, FLAGS, file, "", COMMANDS)
    for name, table in tables.items():
        if isinstance(table, dict):
            if name not in COMMANDS:
                raise _unknown(f"[{name}]", name, COMMANDS, file, "table")
            own = _read_table(table, flags_of(name), file, f"[{name}] ", ())
            if name == command:
                values.update(own)
    wanted = {flag.field for flag in flags_of(command)}
    return {name: value for name, value in values.items() if name in wanted}


def _read_toml(file: Path) -> dict[str, object]:
    import tomllib

    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise BadInput(f"The config file {file} is larger than {MAX_CONFIG_BYTES} bytes.")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise BadInput(
            f"The config file {file} cannot be read: {(error.strerror or 'unknown reason').lower()}.",
            hint="Name another with --config, or correct its path.",
        ) from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are both one
        raise BadInput(f"The config file {file} is not TOML: {error}.", hint="Correct that line.") from error


def _read_table(
    table: Mapping[str, object], flags: Iterable[Flag], file: Path, where: str, tables: Iterable[str]
) -> dict[str, Value]:
    # The file cannot name itself, so `config` is no key of it.
    known = {flag.name: flag for flag in flags if flag.name != "config"}
    values: dict[str, Value] = {}
    for key, given in table.items():
        flag = known.get(key.replace("_", "-"))
        if flag is None:
            raise _unknown(f"{where}{key}", key, [*known, *tables], file, "key")
        values[flag.field] = flag.read_toml(given, f"{where}{key} in {file}")
    return values


def _unknown(shown: str, key: str, known: Iterable[str], file: Path, what: str) -> BadInput:
    known = sorted(known)
    close = difflib.get_close_matches(key.replace("_", "-"), known, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}."
    return BadInput(f"The config file {file} has an unknown {what}: {shown}.", hint=hint)
