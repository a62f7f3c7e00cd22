"""Whether events of `--json` are exactly what the program promises."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Literal, get_args, get_origin, get_type_hints

from swarmnode.node.cli.events import EVENTS

__all__ = ["check_events"]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is what a Python type becomes in JSON."""
    if isinstance(hint, types.UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        wanted = {each.name for each in dataclasses.fields(hint)}
        return isinstance(value, dict) and set(value) == wanted and all(fits(value[n], hints[n]) for n in wanted)
    if get_origin(hint) is tuple:
        one, two = get_args(hint)
        sides = [one] * len(value) if two is Ellipsis else [one, two]
        return isinstance(value, list) and len(value) == len(sides) and all(map(fits, value, sides))
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return type(value) is hint or (value is None and hint is type(None))


def check_events(events: list[dict[str, Any]]) -> None:
    """Every event is exactly what docs/JSON.md says."""
    classes = {event.event: event for event in EVENTS}
    for event in events:
        fields = {name: value for name, value in event.items() if name != "event"}
        assert fits(fields, classes[event["event"]]), event
