"""Llamas with random weights for benchmarks, written as any checkpoint is. Knows no figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["LIVELY", "LLAMA_1B", "Shape", "write_llama"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a Llama is built of.

    Attributes:
        spread: standard deviation of its weights.
        dtype: that they are stored in.
    """

    blocks: int
    hidden_size: int
    intermediate_size: int
    heads: int
    key_heads: int
    context_tokens: int
    spread: float
    dtype: str


LLAMA_1B: Final = Shape(16, 2048, 8192, 32, 8, 131_072, 0.02, "bfloat16")
"""Llama 3.2 1B, but for its vocabulary: bytes, so that all it has are its blocks."""

LIVELY: Final = Shape(4, 64, 48, 4, 2, 1024, 0.2, "float32")
"""Tiny, and each answer hangs on every token before it: one token of the prompt changed gave other text in 12 of
12. With a spread of 0.05 attention is so even that it did in one."""


def write_llama(folder: Path, shape: Shape, *, seed: int = 0) -> None:
    """Write a model of random weights and a tokenizer of bytes. The 1B takes 2 GiB of disk, for a while 4 of memory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from swarmnode.models.byte_tokenizer import BYTE_VOCABULARY, byte_tokenizer
    from swarmnode.models.cut import quiet_transformers

    config = LlamaConfig(
        vocab_size=BYTE_VOCABULARY,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        num_hidden_layers=shape.blocks,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=shape.context_tokens,
        initializer_range=shape.spread,
        tie_word_embeddings=True,
    )
    with quiet_transformers():
        torch.manual_seed(seed)
        LlamaForCausalLM._from_config(config, dtype=getattr(torch, shape.dtype)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
