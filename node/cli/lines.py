"""Lines from standard input, awaited: the event loop goes on while a person thinks, and Ctrl-C works at the prompt."""

from __future__ import annotations

import os
import stat
import sys
from typing import Final

import trio

__all__ = ["InputLines"]

READ_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 16 * 1024 * 1024


class InputLines:
    """Reads one line after the other. A terminal edits the line itself, so nothing here changes its mode."""

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._held = b""
        self._ended = False
        # A regular file is always ready, and the event loop refuses to wait for one.
        self._waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)

    @property
    def from_terminal(self) -> bool:
        return os.isatty(self._descriptor)

    async def next(self, prompt: str = "") -> str | None:
        """The next line without its end, or None when there is none. `prompt` is shown on a terminal only."""
        if self.from_terminal:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        while b"\n" not in self._held and not self._ended and len(self._held) < MAX_LINE_BYTES:
            if self._waits:
                await trio.lowlevel.wait_readable(self._descriptor)
            else:
                await trio.lowlevel.checkpoint()
            chunk = os.read(self._descriptor, READ_BYTES)
            self._held += chunk
            self._ended = not chunk
        if self._ended and not self._held:
            return None
        line, _, self._held = self._held.partition(b"\n")
        return line.decode(errors="replace").removesuffix("\r")
