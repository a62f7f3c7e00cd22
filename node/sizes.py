"""Sizes of memory as people write and read them: `6GiB`, `500MB`. Knows nothing else."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["parse_size", "shown_size"]

_UNITS: Final[dict[str, int]] = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_SIZE: Final = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([a-zA-Z]+)\s*", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of a size such as `6GiB` (1024³), `6GB` (1000³) or `512 MiB`. Raises `ValueError`."""
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match is not None else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is no size")
    return round(float(match[1]) * unit)


def shown_size(size_bytes: float) -> str:
    """A size for people: `6.0 GiB`, `512 MiB`."""
    if size_bytes >= 1 << 30:
        return f"{size_bytes / (1 << 30):.1f} GiB"
    return f"{round(size_bytes / (1 << 20))} MiB"
