"""A tiny random Llama in a folder, in whatever form of checkpoint a test wants."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

__all__ = ["BLOCKS", "save_tiny_llama"]

BLOCKS = 4


def save_tiny_llama(
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    shard: str = "5GB",
    pickled: bool = False,
) -> LlamaForCausalLM:
    """Write the model's folder, without a tokenizer, and give the model back.

    Args:
        shard: the most bytes of one weights file.
        pickled: write `pytorch_model.bin` instead of safetensors.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    if pickled:
        for file in folder.glob("*.safetensors*"):
            file.unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model
