"""docs/JSON.md says what the program prints: every event, every field, every type, every exit code."""

from __future__ import annotations

import dataclasses
import re
import types
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from swarmnode import errors
from swarmnode.node.cli import blame, events
from swarmnode.node.settings import COMMANDS

PAGE = (Path(__file__).parents[2] / "docs" / "JSON.md").read_text(encoding="utf-8")
INNER = (events.ModelName, events.Hop, events.ModelStatus, events.ServerStatus, events.Family)
PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def in_words(hint: Any) -> str:
    """A Python type as the page names its JSON."""
    if hint in PLAIN:
        return PLAIN[hint]
    if dataclasses.is_dataclass(hint):
        return str(hint.__name__)  # type: ignore[union-attr]  # a class, as hints are
    if isinstance(hint, types.UnionType):
        one, none = get_args(hint)
        assert none is type(None)
        return f"{in_words(one)} or null"
    if get_origin(hint) is Literal:
        return "string"
    assert get_origin(hint) is tuple
    one, two = get_args(hint)
    return f"list of {in_words(one)}" if two is Ellipsis else f"[{in_words(one)}, {in_words(two)}]"


def rows(title: str) -> dict[str, str]:
    """Field and type of the table under a heading."""
    section = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/JSON.md has no section {title}"
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section[1], re.MULTILINE))


def fields(cls: type) -> dict[str, str]:
    hints = get_type_hints(cls)
    return {each.name: in_words(hints[each.name]) for each in dataclasses.fields(cls)}


def test_every_event_is_described_field_by_field() -> None:
    for event in events.EVENTS:
        assert rows(f"`{event.event}`") == fields(event), event.event
    for inner in INNER:
        assert rows(inner.__name__) == fields(inner), inner.__name__


def test_nothing_else_is_described() -> None:
    titles = set(re.findall(r"^### `?(\w+)`?$", PAGE, re.MULTILINE))
    assert titles == {event.event for event in events.EVENTS} | {inner.__name__ for inner in INNER}


def test_every_event_has_a_name_of_its_own_and_is_exported() -> None:
    assert len({event.event for event in events.EVENTS}) == len(events.EVENTS)
    assert {cls.__name__ for cls in get_args(events.Event)} == {cls.__name__ for cls in events.EVENTS}
    assert {cls.__name__ for cls in (*events.EVENTS, *INNER)} <= set(events.__all__)


def test_every_command_is_listed() -> None:
    listed = re.findall(r"^\| `([\w-]+)` \| `", PAGE, re.MULTILINE)
    assert listed == list(COMMANDS)


def test_every_exit_code_is_listed() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    ours = {getattr(errors, name).exit_code for name in errors.__all__ if name != "SwarmnodeError"}
    assert listed == ours | {0, 128 + 2, 128 + 15, blame.INTERNAL_EXIT, blame.BROKEN_PIPE_EXIT}


def test_the_literal_words_are_named() -> None:
    for event in events.EVENTS:
        for name, hint in get_type_hints(event).items():
            if get_origin(hint) is Literal:
                for word in get_args(hint):
                    assert f"`{word}`" in PAGE, (event.event, name, word)
