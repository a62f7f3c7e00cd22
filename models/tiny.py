"""A tiny config for every causal-LM family: a few blocks of every kind the family has, run in milliseconds.

What is common is in `_SMALL`; `_FAMILIES` holds what a family needs beyond it. Knows nothing of parts.
"""

from __future__ import annotations

import inspect
from collections.abc import Container
from itertools import cycle, islice
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

__all__ = ["VOCABULARY", "tiny_config"]

VOCABULARY = 96
"""Tokens of a tiny model; ids from 3 on are ordinary words."""

BLOCKS = 4
HEADS = 4
HEAD_DIM = 16
WINDOW = 6
"""Tokens of a sliding window: small, so that it slides within a short test."""

_ATTENTION: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 128,
    "hidden_size": HEADS * HEAD_DIM,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "rotary_dim": 8,
}
_LATENT_ATTENTION: dict[str, Any] = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": HEAD_DIM,
    "index_n_heads": 16,  # few heads make ties, and then which tokens count as best is chance
    "index_head_dim": HEAD_DIM,
    "index_topk": 4,
}
_LATENT_HEADS: dict[str, Any] = {"head_dim": _LATENT_ATTENTION["qk_rope_head_dim"], "num_key_value_heads": HEADS}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "expert_ffn_hidden_size": 24,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_RECURRENCE: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": HEAD_DIM,
    "linear_value_head_dim": HEAD_DIM,
    "linear_head_dim": HEAD_DIM,
    "linear_num_heads": HEADS,
    "mamba_n_heads": 8,
    "mamba_d_head": HEAD_DIM,
    "mamba_d_state": 16,
    "mamba_d_ssm": 128,
    "mamba_chunk_size": 4,
    "mamba_num_heads": 8,
    "mamba_head_dim": HEAD_DIM,
    "ssm_state_size": 16,
    "state_size": 16,
    "time_step_rank": 4,
    "n_groups": 2,
    "chunk_size": 4,
}
_TOWERS: dict[str, Any] = {"image_size": 16, "patch_size": 8, "num_channels": 3}
_SMALL = _ATTENTION | _LATENT_ATTENTION | _EXPERTS | _RECURRENCE | _TOWERS

_DECODER = {"is_decoder": True}
_GEMMA4 = {
    "use_bidirectional_attention": "vision",
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCABULARY,
    "global_head_dim": 32,
}
_INKLING = {"swa_num_attention_heads": HEADS, "swa_num_key_value_heads": 2, "swa_head_dim": HEAD_DIM}
_QWEN4 = {
    **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": HEAD_DIM, "indexer_budget": 8},
    **{"indexer_compress_ratio": 2, "hc_count": 2, "hc_lowrank": 8},
}
_ROPE_BY_KIND = {
    kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in ("full_attention", "sliding_attention")
}

_FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
            *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
        ),
        _DECODER,
    ),
    "bamba": {"attn_layer_indices": [1, 3]},
    "big_bird": _DECODER | {"attention_type": "original_full"},
    "biogpt": {"max_position_embeddings": 64},
    "codegen": {"n_ctx": 128},
    "cpmant": {"dim_head": HEAD_DIM, "dim_ff": 48, "prompt_length": 4},
    "ctrl": {"dff": 48},
    "cohere_compass_text": {"rope_parameters": _ROPE_BY_KIND},
    "dbrx": {
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 24, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
    },
    "deepseek_v4": {"num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 8},
    "dots3_note_vision_encoder": {"adapter_in_dim": HEADS * HEAD_DIM, "adapter_out_dim": HEADS * HEAD_DIM},
    "dots3_note_audio_encoder": {"adapter_input_size": HEADS * HEAD_DIM, "adapter_output_size": HEADS * HEAD_DIM},
    "dots3_note_text": {"head_dim": HEAD_DIM, "per_layer_config": {}},
    "gemma4_text": _GEMMA4 | {"enable_moe_block": True, "top_k_experts": 2},
    "gemma4_unified_text": _GEMMA4,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "inkling2_text": _INKLING,
    "inkling_text": _INKLING | {"sliding_window_size": WINDOW},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "longcat_flash": {"num_layers": BLOCKS, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "phi4_multimodal": {
        "audio_config": {"hidden_size": 64, "nemo_conv_channels": 16, "intermediate_size": 48, "ext_pw_out_channel": 64}
    },
    "qwen4_exp_text": _QWEN4,
    "reformer": _DECODER,
    "roc_bert": _DECODER | {"pronunciation_vocab_size": 16, "shape_vocab_size": 16},
    "xmod": _DECODER | {"languages": ["en_XX"], "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(family: str, **changes: Any) -> PretrainedConfig:
    """The tiny config of a model type, with some fields changed. Raises what the family's own validation raises."""
    return _tiny(CONFIG_MAPPING[family], family, changes)


def _tiny(config_class: type[PretrainedConfig], family: str, changes: dict[str, Any]) -> PretrainedConfig:
    known = inspect.signature(config_class).parameters
    small = _SMALL | (_LATENT_HEADS if "kv_lora_rank" in known else {})
    values: dict[str, Any] = {}
    for name, value in small.items():
        for field in (name, config_class.attribute_map.get(name)):
            if field in known:
                values[field] = value
    values |= _every_kind(config_class, known)
    values |= _FAMILIES.get(family, {}) | changes
    for name in config_class.sub_configs:
        section = getattr(config_class(), name, None)
        if name not in values and section is not None:
            values[name] = _tiny(type(section), section.model_type, {}).to_dict()
    return config_class(**values)


def _every_kind(config_class: type[PretrainedConfig], known: Container[str]) -> dict[str, list[str]]:
    """Per-layer lists that show each kind of block that the family's own default has."""
    lists = {}
    default = config_class()
    for name in ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types"):
        kinds = getattr(default, name, None)
        if kinds and name in known:
            lists[name] = list(islice(cycle(dict.fromkeys(kinds)), BLOCKS))
    return lists
