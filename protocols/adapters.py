"""How peers name an adapter: what its server calls it, and a digest of what it is. Knows nothing of its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import limits
from .wire import Fields

__all__ = ["ADAPTER_NAME", "AdapterId", "adapter_to_map", "read_adapter", "read_adapters"]

ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]*")
"""Nothing that a shell, a list or the `@` before a digest could be confused by; `MAX_ADAPTER_NAME_CHARS` at most."""

SHOWN_DIGITS = 8
"""Of a digest, in hex: enough to tell a handful of adapters apart."""


@dataclass(frozen=True, slots=True, order=True)
class AdapterId:
    """Which adapter exactly.

    Attributes:
        name: what its server calls it.
        digest: 16 bytes over its settings and tensors. Two servers' "poet" are the same thing if it is.
    """

    name: str
    digest: bytes

    def __str__(self) -> str:
        return f"{self.name}@{self.digest.hex()[:SHOWN_DIGITS]}"


def adapter_to_map(adapter: AdapterId) -> dict[str, object]:
    return {"name": adapter.name, "digest": adapter.digest}


def read_adapter(fields: Fields) -> AdapterId:
    name = fields.text("name", limits.MAX_ADAPTER_NAME_CHARS, least_chars=1)
    if not ADAPTER_NAME.fullmatch(name):
        raise fields.wrong("name must be made of letters, digits, dots, dashes and underscores.")
    return AdapterId(name, fields.binary("digest", limits.ADAPTER_DIGEST_BYTES))


def read_adapters(fields: Fields) -> tuple[AdapterId, ...]:
    """The field `adapters`; no name in it twice."""
    adapters = tuple(map(read_adapter, fields.maps("adapters", limits.MAX_ADAPTERS)))
    if len({adapter.name for adapter in adapters}) < len(adapters):
        raise fields.wrong("adapters must have different names.")
    return adapters
