"""Typed msgpack within limits: what every header and record is made of. The one file that imports msgpack.

Bytes from a peer give plain values of the expected types or a `ProtocolViolation` that says in one sentence what was
wrong; no other exception, and no more memory than a small multiple of the bytes that came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn, cast

import msgpack
from typing_extensions import Buffer

from swarmnode.errors import ProtocolViolation

from . import limits

__all__ = ["Fields", "clean_text", "pack", "shown", "unpack_map"]


def pack(values: Mapping[str, object]) -> bytes:
    """A map of our own as msgpack, entries in the order given."""
    return cast(bytes, msgpack.packb(values, use_bin_type=True))


def unpack_map(data: Buffer, what: str) -> dict[str, object]:
    """One msgpack map with text keys, and nothing after it.

    Args:
        data: bytes from a peer; the caller has bounded their number.
        what: the thing they should be, for the error text.
    """
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_map_without_duplicates,
            ext_hook=_refuse_extension,
            max_array_len=limits.MAX_ARRAY_ITEMS,
            max_map_len=limits.MAX_MAP_ENTRIES,
        )
    except ProtocolViolation:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ProtocolViolation(f"The {what} is not msgpack within the limits ({type(error).__name__}).") from None
    if type(value) is not dict:
        raise ProtocolViolation(f"The {what} is {_kind(value)}, not a map.")
    _check(value, what, 1)
    return value


_PLAIN = frozenset({str, bytes, bool, type(None)})


def _map_without_duplicates(pairs: list[tuple[object, object]]) -> dict[object, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ProtocolViolation("A map has the same key twice.")
    return values


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ProtocolViolation("A value has a msgpack extension type; none is allowed.")


def _check(container: object, what: str, depth: int) -> None:
    """Refuse what msgpack can say and we do not: deep nests, keys that are not text, huge integers, NaN."""
    if depth > limits.MAX_DEPTH:
        raise ProtocolViolation(f"The {what} is nested deeper than {limits.MAX_DEPTH}.")
    if isinstance(container, dict):
        if not all(type(key) is str for key in container):
            raise ProtocolViolation(f"The {what} has a key that is not text.")
        _check(list(container.values()), what, depth)
        return
    if not isinstance(container, list):
        raise ProtocolViolation(f"The {what} has a value of a type that is not allowed.")
    for item in container:
        kind = type(item)
        if kind is int:
            if not limits.MIN_INT <= item <= limits.MAX_INT:
                raise ProtocolViolation(f"The {what} has an integer of more than 63 bits.")
        elif kind is float:
            if not math.isfinite(item):
                raise ProtocolViolation(f"The {what} has a number that is not finite.")
        elif kind not in _PLAIN:
            _check(item, what, depth + 1)


def _kind(value: object) -> str:
    names = {dict: "a map", list: "a list", str: "text", bytes: "bytes", int: "an integer", float: "a number"}
    names |= {bool: "a boolean", type(None): "nil"}
    return names.get(type(value), "something else")


def _is_printable(text: str) -> bool:
    return text.isprintable() and not text.startswith(" ") and not text.endswith(" ")


def shown(text: str) -> str:
    """A peer's word, safe and short enough to quote in an error."""
    return clean_text(text, limits.MAX_WORD_CHARS)


def clean_text(text: str, max_chars: int) -> str:
    """Text safe to show a person: one line without control, escape, direction or invisible characters, cut to size."""
    # The cut before the work bounds the work; white space in runs may cost a few characters more than it must.
    visible = "".join(c if c.isprintable() else " " for c in text[: 4 * max_chars])
    line = " ".join(visible.split())
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


class Fields:
    """The fields of one map from a peer, each read with its type and bounds.

    Every method raises `ProtocolViolation` when the field is missing, of another type or outside its bounds. Fields
    that are never read are ignored: that is how later versions add some.
    """

    __slots__ = ("_values", "_what")

    def __init__(self, what: str, values: Mapping[str, object]) -> None:
        self._what = what
        self._values = values

    def integer(self, name: str, most: int, *, least: int = 0) -> int:
        value = self._values.get(name)
        if type(value) is not int:
            self._wrong_type(name, "an integer")
        if not least <= value <= most:
            raise ProtocolViolation(f"{self._what}: {name} must be between {least} and {most}.")
        return value

    def number(self, name: str, most: float, *, least: float = 0.0) -> float:
        """A finite number; writers may send a whole one as an integer."""
        value = self._values.get(name)
        if type(value) is not int and type(value) is not float:
            self._wrong_type(name, "a number")
        if not least <= value <= most:
            raise ProtocolViolation(f"{self._what}: {name} must be between {least:g} and {most:g}.")
        return float(value)

    def text(self, name: str, max_chars: int, *, least_chars: int = 0) -> str:
        """Text of printable characters only, without white space at its ends."""
        value = self._any_text(name, max_chars)
        if len(value) < least_chars:
            raise ProtocolViolation(f"{self._what}: {name} must not be empty.")
        if not _is_printable(value):
            raise ProtocolViolation(f"{self._what}: {name} has characters that are not printable.")
        return value

    def prose(self, name: str, max_chars: int) -> str:
        """A sentence for a person: cleaned rather than refused; empty when missing."""
        return clean_text(self._any_text(name, max_chars), max_chars) if self.has(name) else ""

    def binary(self, name: str, length: int) -> bytes:
        value = self._values.get(name)
        if type(value) is not bytes:
            self._wrong_type(name, "bytes")
        if len(value) != length:
            raise ProtocolViolation(f"{self._what}: {name} must have {length} bytes, not {len(value)}.")
        return value

    def flag(self, name: str) -> bool:
        value = self._values.get(name)
        if type(value) is not bool:
            self._wrong_type(name, "a boolean")
        return value

    def map(self, name: str) -> Fields:
        value = self._values.get(name)
        if type(value) is not dict:
            self._wrong_type(name, "a map")
        return Fields(f"{self._what}.{name}", value)

    def items(self, name: str, most: int) -> list[object]:
        value = self._values.get(name)
        if type(value) is not list:
            self._wrong_type(name, "a list")
        if len(value) > most:
            raise ProtocolViolation(f"{self._what}: {name} must have at most {most} items, not {len(value)}.")
        return value

    def maps(self, name: str, most: int) -> list[Fields]:
        """A list of maps."""
        values = self.items(name, most)
        maps = [Fields(f"{self._what}.{name}", value) for value in values if isinstance(value, dict)]
        if len(maps) != len(values):
            raise self.wrong(f"{name} must hold maps.")
        return maps

    def integers(self, name: str, max_items: int, most: int) -> tuple[int, ...]:
        """A list of integers from 0 to `most`."""
        values = self.items(name, max_items)
        for value in values:
            if type(value) is not int or not 0 <= value <= most:
                raise ProtocolViolation(f"{self._what}: {name} must hold integers between 0 and {most}.")
        return cast(tuple[int, ...], tuple(values))

    def texts(self, name: str, max_items: int, max_chars: int) -> tuple[str, ...]:
        """A list of printable, non-empty texts."""
        values = self.items(name, max_items)
        for value in values:
            if type(value) is not str or not 0 < len(value) <= max_chars or not _is_printable(value):
                raise ProtocolViolation(
                    f"{self._what}: {name} must hold printable text of up to {max_chars} characters."
                )
        return cast(tuple[str, ...], tuple(values))

    def has(self, name: str) -> bool:
        """Whether the field is there and not nil; the two ways to leave an optional one out."""
        return self._values.get(name) is not None

    def wrong(self, sentence: str) -> ProtocolViolation:
        """The error to raise for a rule that spans fields."""
        return ProtocolViolation(f"{self._what}: {sentence}")

    def _any_text(self, name: str, max_chars: int) -> str:
        value = self._values.get(name)
        if type(value) is not str:
            self._wrong_type(name, "text")
        if len(value) > max_chars:
            raise ProtocolViolation(f"{self._what}: {name} must have at most {max_chars} characters, not {len(value)}.")
        return value

    def _wrong_type(self, name: str, expected: str) -> NoReturn:
        if name not in self._values:
            raise ProtocolViolation(f"{self._what}: {name} is missing.")
        raise ProtocolViolation(f"{self._what}: {name} must be {expected}, not {_kind(self._values[name])}.")
