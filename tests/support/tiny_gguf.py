"""A tiny quantised Llama as a GGUF file, written with the gguf package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from tokenizers import pre_tokenizers

__all__ = ["BLOCKS", "write_tiny_gguf"]

BLOCKS = 3
HIDDEN, INNER, HEADS, KV_HEADS = 64, 96, 4, 2
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
ENDS = (257, 258)


def write_tiny_gguf(path: Path, *, seed: int = 0, architecture: str = "llama", leave_out: str = "") -> None:
    """Write the file: bytes as tokens, two special tokens, most weights in 8-bit blocks.

    Args:
        architecture: what the metadata says that it is.
        leave_out: the name of a tensor that is not written.
    """
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "<|end|>", "<|turn|>"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * 257 + [TokenType.CONTROL] * 2)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(ENDS[0])
    writer.add_eos_token_id(ENDS[0])
    writer.add_eot_token_id(ENDS[1])
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for block in range(BLOCKS):
        width = HIDDEN // HEADS * KV_HEADS
        shapes |= {
            f"blk.{block}.attn_norm.weight": (HIDDEN,),
            f"blk.{block}.ffn_norm.weight": (HIDDEN,),
            f"blk.{block}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{block}.attn_k.weight": (width, HIDDEN),
            f"blk.{block}.attn_v.weight": (width, HIDDEN),
            f"blk.{block}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{block}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{block}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{block}.ffn_down.weight": (HIDDEN, INNER),
        }
    for name, shape in shapes.items():
        numbers = random.standard_normal(shape).astype(np.float32)
        if name == leave_out:
            continue
        if len(shape) == 1:
            writer.add_tensor(name, numbers)
        elif "attn_v" in name:
            writer.add_tensor(name, numbers.astype(np.float16))
        else:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
