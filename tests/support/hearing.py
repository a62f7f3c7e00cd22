"""Waiting for what a node under test says in its log, however that log is set up: by event, not by looking again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import trio

__all__ = ["Heard", "hearing"]


class Heard(logging.Handler):
    """What `swarmnode` has logged since it was made; records come from trio's thread."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []
        self._more = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self._more.set()
        self._more = trio.Event()

    def said(self, level: int) -> list[str]:
        """The lines of that level and above."""
        return [record.getMessage() for record in self.records if record.levelno >= level]

    async def line_with(self, words: str) -> logging.LogRecord:
        """The first line that has these words in it, as soon as it is there."""
        seen = 0
        while True:
            for record in self.records[seen:]:
                if words in record.getMessage():
                    return record
            seen = len(self.records)
            await self._more.wait()


@contextmanager
def hearing() -> Iterator[Heard]:
    """Hear everything that `swarmnode` logs in this block."""
    logger, heard = logging.getLogger("swarmnode"), Heard()
    level = logger.level
    logger.addHandler(heard)
    logger.setLevel(logging.DEBUG)
    try:
        yield heard
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)
