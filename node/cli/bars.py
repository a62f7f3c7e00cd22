"""Progress for people: tqdm bars on a terminal, two plain lines a piece of work elsewhere."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final, NoReturn

from .events import Progress

if TYPE_CHECKING:
    from tqdm import tqdm

    Bar = tqdm[NoReturn]

__all__ = ["Bars"]

_DOING: Final = {"download": "downloading", "convert": "converting", "load": "loading"}
_DONE: Final = {"download": "downloaded", "convert": "converted", "load": "loaded"}
_UNITS: Final = {"bytes": "B", "blocks": " blocks"}


class Bars:
    """Draws any number of pieces of work at once on standard error. May be called from any thread."""

    def __init__(self) -> None:
        self._bars: dict[tuple[str, str], Bar | None] = {}
        self._finished: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def show(self, event: Progress) -> None:
        """Draw how far a piece of work has come."""
        key = (event.stage, event.what)
        with self._lock:
            if key in self._finished:
                return
            if key not in self._bars:
                self._bars[key] = self._begin(event)
            bar = self._bars[key]
            if bar is not None:
                bar.total = event.total
                bar.update(event.done - bar.n)
            if event.done == event.total:
                self._finish(key, event)

    def close(self) -> None:
        """Take down the bars that are still drawn."""
        with self._lock:
            for bar in self._bars.values():
                if bar is not None:
                    bar.close()
            self._bars.clear()

    def above(self, text: str) -> None:
        """A line of text that does not disturb the bars."""
        with self._lock:
            self._write(text)

    def _write(self, text: str) -> None:
        if any(bar is not None for bar in self._bars.values()):
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def _begin(self, event: Progress) -> Bar | None:
        doing = f"{_DOING[event.stage]} {event.what}"
        if not sys.stderr.isatty():
            self._write(f"{doing} …")
            return None
        from tqdm import tqdm

        bar: Bar = tqdm(
            desc=doing,
            total=event.total,
            unit=_UNITS[event.unit],
            unit_scale=event.unit == "bytes",
            file=sys.stderr,
            leave=False,
            dynamic_ncols=True,
        )
        return bar

    def _finish(self, key: tuple[str, str], event: Progress) -> None:
        self._finished.add(key)
        bar = self._bars.pop(key)
        if bar is not None:
            bar.close()
        self._write(f"{_DONE[event.stage]} {event.what}")
