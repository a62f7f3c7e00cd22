"""Ending a text before a stop string, wherever the pieces break it. Knows no model and no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Lets text through until the first stop string, and holds back what may become the beginning of one.

    Args:
        stop: the strings, none of them empty; may be none at all.

    Attributes:
        found: the stop string that ended the text, None before that.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.found: str | None = None
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str) -> str:
        """The part of the text so far that no stop string can claim any more. After one was found: nothing."""
        if self.found is not None:
            return ""
        self._held += text
        first = min(
            ((at, one) for one in self._stop if (at := self._held.find(one)) >= 0),
            # At one place the longest counts, as nothing of a stop string is to be seen.
            key=lambda match: (match[0], -len(match[1])),
            default=None,
        )
        if first is not None:
            at, self.found = first
            clear, self._held = self._held[:at], ""
            return clear
        keep = max((_overlap(self._held, one) for one in self._stop), default=0)
        clear = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return clear

    def finish(self) -> str:
        """What was held back, now that no more text comes."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((count for count in range(longest, 0, -1) if text.endswith(stop[:count])), 0)
