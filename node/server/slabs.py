"""How much cache is really allocated for the tokens of a session: slabs that double, or pages. Pure arithmetic."""

from __future__ import annotations

from typing import Final

__all__ = ["FIRST_SLAB_TOKENS", "page_tokens", "slab_tokens"]

FIRST_SLAB_TOKENS: Final = 64
"""A session's first slab. Doubling from here copies each token once on average, and wastes half at worst."""


def slab_tokens(tokens: int, first: int = FIRST_SLAB_TOKENS) -> int:
    """Tokens of the smallest slab that holds `tokens`, when slabs begin with `first` and double; 0 for none."""
    if tokens <= 0:
        return 0
    slab = first
    while slab < tokens:
        slab *= 2
    return slab


def page_tokens(tokens: int, page: int) -> int:
    """Tokens of the pages that hold `tokens`."""
    return -(-max(tokens, 0) // page) * page
