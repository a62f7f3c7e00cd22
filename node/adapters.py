"""Which adapter is meant: what a server was told to offer, and what a client finds on offer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from swarmnode.errors import AdapterMissing, BadInput
from swarmnode.protocols.adapters import ADAPTER_NAME, AdapterId
from swarmnode.protocols.limits import MAX_ADAPTER_NAME_CHARS, MAX_ADAPTERS
from swarmnode.protocols.records import ServerRecord

from .routes import missing_blocks

__all__ = ["check_adapters", "choose_adapter", "listed", "parse_adapters"]


def parse_adapters(given: Iterable[str]) -> dict[str, str]:
    """Where each adapter is, by name, from texts such as `poet=./folder`. Raises `BadInput`."""
    places: dict[str, str] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not equals or not place:
            raise BadInput(
                f"An adapter to serve is named and placed, but {text!r} is not.",
                hint="Give --adapter NAME=FOLDER or NAME=HUB_ID, such as --adapter poet=./poet.",
            )
        if name in places:
            raise BadInput(f"Two adapters are called {name}.", hint="Give each a name of its own.")
        places[name] = place
    return places


def check_adapters(places: Mapping[str, str | Path]) -> None:
    """Raise `BadInput` when a server cannot offer so many adapters, or call them so."""
    if len(places) > MAX_ADAPTERS:
        raise BadInput(f"A server offers {MAX_ADAPTERS} adapters at most, not {len(places)}.", hint="Name fewer.")
    for name in places:
        if len(name) > MAX_ADAPTER_NAME_CHARS or not ADAPTER_NAME.fullmatch(name):
            raise BadInput(
                f"{name[: 2 * MAX_ADAPTER_NAME_CHARS]!r} cannot be an adapter's name.",
                hint=f"Use up to {MAX_ADAPTER_NAME_CHARS} letters, digits, dots, dashes and underscores.",
            )


def choose_adapter(records: Sequence[ServerRecord], wanted: str, num_blocks: int) -> AdapterId:
    """The adapter that is meant.

    Args:
        records: of servers of one model.
        wanted: its name, or name, `@` and the beginning of its digest in hex.

    Raises:
        AdapterMissing: no server has it; says which there are.
        BadInput: there are several of this name, each on all blocks.
    """
    name, _, digits = wanted.partition("@")
    offered = {adapter for record in records for adapter in record.adapters}
    fitting = sorted(each for each in offered if each.name == name and each.digest.hex().startswith(digits.lower()))
    if not fitting:
        there = f"There {'is' if len(offered) == 1 else 'are'} {listed(offered)}" if offered else "There are none"
        raise AdapterMissing(
            f"No server of the model has an adapter {wanted[:100]!r}. {there}.",
            hint=f"Serve it with `swarmnode serve --adapter {name[:MAX_ADAPTER_NAME_CHARS]}=FOLDER`, or use another.",
        )
    whole = [each for each in fitting if not missing_blocks(_having(records, each), num_blocks)]
    if len(whole) > 1:
        raise BadInput(f"Servers have several adapters of this name: {listed(whole)}.", hint="Name the one you mean.")
    return (whole or fitting)[0]


def listed(adapters: Iterable[AdapterId]) -> str:
    """Adapters for people, in order."""
    return ", ".join(map(str, sorted(adapters)))


def _having(records: Iterable[ServerRecord], adapter: AdapterId) -> list[ServerRecord]:
    return [each for each in records if any(own.digest == adapter.digest for own in each.adapters)]
