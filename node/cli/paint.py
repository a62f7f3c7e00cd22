"""Colour for a terminal that wants it (no-color.org), and no escape sequences from anybody else."""

from __future__ import annotations

import os
from typing import Final, TextIO

__all__ = ["Paint", "harmless"]

_CODES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Paint:
    """Paints text for one stream; changes nothing unless the stream is a terminal and nobody objects."""

    def __init__(self, stream: TextIO) -> None:
        self.on = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def __call__(self, style: str, text: str) -> str:
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.on and text else text


# All control characters but tab and line break: a terminal obeys them, and peers choose what we print.
_CONTROLS: Final = dict.fromkeys([*(code for code in range(32) if code not in (9, 10)), *range(127, 160)])


def harmless(text: str) -> str:
    """Text from elsewhere, without what a terminal would obey."""
    return text.translate(_CONTROLS)
