"""A tiny random model with a tokenizer of letters, in a folder as `save_pretrained` makes it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["BLOCKS", "CONTEXT_TOKENS", "make_tiny_model"]

BLOCKS = 4
CONTEXT_TOKENS = 2048
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def make_tiny_model(folder: Path, seed: int) -> Path:
    """A llama of a few blocks with random weights that reads and writes ASCII."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    # Of the letters that stand for bytes, those of ASCII, a blank and a line break.
    alphabet = [*map(chr, range(33, 127)), "Ġ", "Ċ"]
    tokenizer = Tokenizer(models.BPE(vocab={letter: code for code, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
