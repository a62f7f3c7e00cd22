"""How a session's tokens are cut into steps, and how recorded ones are packed to be sent again. Pure.

Attention over a token differs in its last bits by what was computed with it. So a session that is sent again has to
come in the very segments in which it came first, however few messages carry them.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["cut", "forget", "packed"]


def cut(tokens: int, most_tokens: int) -> list[int]:
    """The lengths of the steps that carry so many tokens, none longer than `most_tokens`."""
    whole, rest = divmod(tokens, most_tokens)
    return [most_tokens] * whole + ([rest] if rest else [])


def forget(segments: list[int], position: int) -> None:
    """Take away the tokens from `position` on. Of a segment that it parts, the beginning becomes one of its own."""
    tokens = sum(segments)
    while tokens > position:
        tokens -= segments.pop()
    if tokens < position:
        segments.append(position - tokens)


def packed(segments: Iterable[int], most_tokens: int, most_segments: int) -> list[list[int]]:
    """The segments in as few messages as carry them in their order; one that is too long for a message is cut."""
    messages: list[list[int]] = []
    room = 0
    for segment in segments:
        for tokens in cut(segment, most_tokens):
            if tokens > room or len(messages[-1]) >= most_segments:
                messages.append([])
                room = most_tokens
            messages[-1].append(tokens)
            room -= tokens
    return messages
