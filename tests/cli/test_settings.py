"""One table makes flags, environment names and config keys; flag before environment before file before default."""

from __future__ import annotations

from pathlib import Path
from typing import get_type_hints

import pytest

from swarmnode.errors import BadInput
from swarmnode.models.settings import Sampling
from swarmnode.node.cli.arguments import parse_arguments
from swarmnode.node.config import default_config_file, resolve
from swarmnode.node.flags import Flag, Value
from swarmnode.node.settings import COMMANDS, FLAGS, Settings, flags_of

# For each kind of flag: a text of it, and its value.
SAMPLES: dict[str, tuple[str, Value]] = {
    "text": ("words", "words"),
    "file": ("/some/file", Path("/some/file")),
    "count": ("7", 7),
    "number": ("0.5", 0.5),
    "size": ("1.5GiB", 3 << 29),
    "switch": ("yes", True),
    "words": ("/ip4/127.0.0.1/tcp/1", ("/ip4/127.0.0.1/tcp/1",)),
    "texts": ("a, b", ("a, b",)),
}
TYPES: dict[str, tuple[object, ...]] = {
    "text": (str, str | None),
    "file": (Path | None,),
    "count": (int, int | None),
    "number": (float,),
    "size": (int | None,),
    "switch": (bool,),
    "choice": (str, str | None),
    "words": (tuple[str, ...],),
    "texts": (tuple[str, ...],),
}


def sample(flag: Flag) -> tuple[str, Value]:
    return (flag.choices[-1], flag.choices[-1]) if flag.kind == "choice" else SAMPLES[flag.kind]


def as_toml(flag: Flag) -> str:
    text, _ = sample(flag)
    if flag.kind == "switch":
        return "true"
    if flag.kind in ("count", "number"):
        return text
    return f'["{text}"]' if flag.takes_many else f'"{text}"'


def settle(*arguments: str, environ: dict[str, str] | None = None) -> Settings:
    command, given = parse_arguments(arguments)
    return resolve(command, given, {"XDG_CONFIG_HOME": "/nonexistent"} if environ is None else environ)


def with_config(tmp_path: Path, text: str) -> dict[str, str]:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    file = default_config_file(environ)
    file.parent.mkdir()
    file.write_text(text)
    return environ


EACH = [pytest.param(command, flag, id=f"{command}-{flag.name}") for command in COMMANDS for flag in flags_of(command)]
IN_FILE = [each for each in EACH if each.values[1].name != "config"]  # type: ignore[union-attr]


def test_every_field_is_a_flag_of_its_type() -> None:
    hints = get_type_hints(Settings)
    assert [flag.field for flag in FLAGS] == [name for name in hints if name != "command"]
    for flag in FLAGS:
        assert hints[flag.field] in TYPES[flag.kind], flag.name
        assert set(flag.commands) <= set(COMMANDS)
        assert not flag.help.endswith("."), flag.name


@pytest.mark.parametrize(("command", "flag"), EACH)
def test_every_flag_is_read_from_the_command_line(command: str, flag: Flag) -> None:
    text, value = sample(flag)
    if flag.kind == "switch":
        arguments = [f"--{flag.name}"]
    elif command in flag.positional:
        before = [each for each in flags_of(command) if command in each.positional]
        arguments = [sample(each)[0] for each in before[: before.index(flag)]] + [text]
    else:
        arguments = [f"--{flag.name}", text]
    if flag.name == "config":
        with pytest.raises(BadInput, match="/some/file cannot be read"):
            settle(command, *arguments)
    else:
        assert getattr(settle(command, *arguments), flag.field) == value
        assert getattr(settle(command), flag.field) == flag.default


@pytest.mark.parametrize(("command", "flag"), IN_FILE)
def test_every_flag_is_read_from_the_environment(command: str, flag: Flag) -> None:
    text, value = sample(flag)
    name = "SWARMNODE_" + flag.name.replace("-", "_").upper()
    assert flag.env == name
    environ = {"XDG_CONFIG_HOME": "/nonexistent", name: text}
    assert getattr(settle(command, environ=environ), flag.field) == value
    assert getattr(settle(command, environ={**environ, name: ""}), flag.field) == flag.default


@pytest.mark.parametrize(("command", "flag"), IN_FILE)
def test_every_flag_is_read_from_the_config_file(command: str, flag: Flag, tmp_path: Path) -> None:
    _, value = sample(flag)
    environ = with_config(tmp_path, f"[{command}]\n{flag.name} = {as_toml(flag)}\n")
    assert getattr(settle(command, environ=environ), flag.field) == value
    other = next(each for each in COMMANDS if each != command)
    assert getattr(settle(other, environ=environ), flag.field) == flag.default


def test_sampling_has_the_same_defaults_here_and_there() -> None:
    settings = settle("generate")
    for name in Sampling.__dataclass_fields__:
        assert getattr(settings, name) == getattr(Sampling(), name)


def test_flag_before_environment_before_command_table_before_top_of_file(tmp_path: Path) -> None:
    environ = with_config(tmp_path, "top-k = 1\n[generate]\ntop-k = 2\n")
    assert settle("chat", environ=environ).top_k == 1
    assert settle("generate", environ=environ).top_k == 2
    environ["SWARMNODE_TOP_K"] = "3"
    assert settle("generate", environ=environ).top_k == 3
    assert settle("generate", "--top-k", "4", environ=environ).top_k == 4


def test_several_addresses_from_every_place(tmp_path: Path) -> None:
    both = ("/ip4/10.0.0.1/tcp/1/p2p/A", "/ip4/10.0.0.2/tcp/2/p2p/B")
    assert settle("status", "--join", both[0], "--join", both[1]).join == both
    assert settle("status", "--join", ",".join(both)).join == both
    for separator in (",", " ", "\n", ", "):
        assert settle("status", environ={"SWARMNODE_JOIN": separator.join(both)}).join == both
    environ = with_config(tmp_path, f'join = ["{both[0]}", "{both[1]}"]\n')
    assert settle("status", environ=environ).join == both


def test_stop_strings_are_taken_as_they_are() -> None:
    assert settle("generate", "--stop", "a, b", "--stop", "\n").stop == ("a, b", "\n")


def test_flags_of_every_command_may_stand_before_it() -> None:
    assert settle("--json", "status").json
    assert settle("status", "--json").json
    assert settle("--debug", "status", "--json").debug


def test_underscores_in_the_file_are_welcome(tmp_path: Path) -> None:
    assert settle("serve", environ=with_config(tmp_path, "cache_tokens = 9\n")).cache_tokens == 9


def test_a_config_file_may_be_named(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text("quiet = true\n")
    assert settle("status", "--config", str(file)).quiet
    assert settle("status", environ={"SWARMNODE_CONFIG": str(file)}).quiet


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("cache-token = 3", "unknown key: cache-token.", "Did you mean cache-tokens?"),
        ("[serve]\nprompt = 'x'", "unknown key: [serve] prompt.", "Known here: "),
        ("[serv]\nmodel = 'x'", "unknown table: [serv].", "Did you mean serve?"),
        ("zzz = 1", "unknown key: zzz.", "Known here: "),
        ("config = 'x'", "unknown key: config.", "Known here: "),
        ("cache-tokens = '3'", "cache-tokens in {file} must be a whole number, not '3'.", "tokens of KV cache"),
        ("cache-tokens = true", "cache-tokens in {file} must be a whole number, not True.", "tokens of KV cache"),
        ("cache-tokens = 0", "cache-tokens in {file} must be at least 1 and at most 1073741824, not 0.", "KV cache"),
        ("join = [1]", "join in {file} must be a list of strings, not [1].", "a peer of the swarm"),
        (
            "dtype = 'int8'",
            "dtype in {file} must be one of auto, float32, bfloat16, float16, not 'int8'.",
            "number format",
        ),
        ("max-memory = 6", "max-memory in {file} must be a string such as '6GiB', not 6.", "memory to take"),
        ("json = 1", "json in {file} must be true or false, not 1.", "JSON object"),
        ("a = = 1", "is not TOML: ", "Correct that line."),
    ],
)
def test_a_config_file_that_makes_no_sense(tmp_path: Path, text: str, message: str, hint: str) -> None:
    environ = with_config(tmp_path, text)
    with pytest.raises(BadInput) as caught:
        settle("serve", environ=environ)
    assert message.format(file=default_config_file(environ)) in caught.value.message
    assert hint in caught.value.hint


def test_a_config_file_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a directory"):
        settle("status", "--config", str(tmp_path))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is not TOML"):
        settle("status", "--config", str(tmp_path / "bytes"))
    (tmp_path / "huge").write_bytes(b"#" * (1 << 21))
    with pytest.raises(BadInput, match="larger than"):
        settle("status", "--config", str(tmp_path / "huge"))


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["serve", "--cache-tokens", "many"], {}, "--cache-tokens must be a whole number, not 'many'."),
        (["serve", "--cache-tokens", "0"], {}, "--cache-tokens must be at least 1 and at most 1073741824, not 0."),
        (["serve"], {"SWARMNODE_CACHE_TOKENS": "x"}, "SWARMNODE_CACHE_TOKENS must be a whole number, not 'x'."),
        (["serve"], {"SWARMNODE_NO_MDNS": "maybe"}, "SWARMNODE_NO_MDNS must be yes or no, not 'maybe'."),
        (["serve", "--dtype", "int4"], {}, "--dtype must be one of auto, float32, bfloat16, float16, not 'int4'."),
        (["generate", "--temperature", "hot"], {}, "--temperature must be a number, not 'hot'."),
        (["serve", "--max-memory", "6"], {}, "--max-memory must be a size such as 6GiB or 500MB, not '6'."),
        (["serve", "--num-blocks", "0"], {}, "--num-blocks must be at least 1 and at most 1024, not 0."),
        (["demo", "--servers", "17"], {}, "--servers must be at least 1 and at most 16, not 17."),
    ],
)
def test_values_that_make_no_sense(arguments: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        settle(*arguments, environ={"XDG_CONFIG_HOME": "/nonexistent", **environ})
    assert caught.value.message == message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ([], "No command was given.", "One of: serve, generate,"),
        (["servee"], "invalid choice: 'servee'", "Did you mean serve?"),
        (["serve", "--cache-token", "3"], "Unrecognized arguments: --cache-token", "Did you mean --cache-tokens?"),
        (["generate", "--prompt"], "expected one argument", "See swarmnode generate --help."),
        (["models", "extra"], "Unrecognized arguments: extra.", "See swarmnode --help."),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str], message: str, hint: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_arguments(arguments)
    assert message in caught.value.message
    assert hint in caught.value.hint
