"""What single model families do differently when cut: one small table, everything not in it follows the common way."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Quirks", "quirks_of"]


@dataclass(frozen=True)
class Quirks:
    """How a family departs from the common way.

    Attributes:
        tuple_blocks: its blocks return tuples, hidden state first.
        shared_modules: names of modules beside the blocks that the blocks themselves need.
        num_blocks_field: the config field that counts the blocks.
    """

    tuple_blocks: bool = False
    shared_modules: tuple[str, ...] = ()
    num_blocks_field: str = "num_hidden_layers"


_COMMON = Quirks()

_TABLE: dict[str, Quirks] = {
    **dict.fromkeys(("bloom", "falcon", "falcon_h1", "gpt_neox_japanese", "mpt", "openai-gpt", "rembert", "trocr"), Quirks(tuple_blocks=True)),
}


def quirks_of(family: str) -> Quirks:
    """The quirks of a model type."""
    return _TABLE.get(family, _COMMON)
