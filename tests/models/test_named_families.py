"""The families that must work, with the variants of their configs that real checkpoints have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors import safe_open

from swarmnode.models.comparison import compare
from swarmnode.models.tiny import tiny_config
from swarmnode.models.tiny_checkpoint import tiny_checkpoint

LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 8}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 8,
}

VARIANTS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama 3 with scaled rope": ("llama", {"rope_parameters": LLAMA_3_ROPE}, True),
    "llama with a tied head and biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True}, True),
    "mixtral": ("mixtral", {}, True),
    "mixtral without a window": ("mixtral", {"sliding_window": None}, True),
    "falcon 7b": ("falcon", {"multi_query": True, "parallel_attn": True}, True),
    "falcon 40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, True),
    "falcon with alibi": ("falcon", {"alibi": True, "parallel_attn": False}, True),
    "bloom": ("bloom", {}, True),
    "bloom with post-norm residuals": ("bloom", {"apply_residual_connection_post_layernorm": True}, True),
    "qwen 3": ("qwen3", {"tie_word_embeddings": True}, True),
    "qwen 3.5": ("qwen3_5", {}, False),
    "gemma 3": ("gemma3", {}, True),
    "gemma 3 text": ("gemma3_text", {"final_logit_softcapping": 30.0}, True),
    "gemma 4": ("gemma4", {}, True),
    "gemma 4 text, dense": ("gemma4_text", {"enable_moe_block": False, "final_logit_softcapping": 30.0}, True),
    "mistral": ("mistral", {}, True),
    "mistral without a window": ("mistral", {"sliding_window": None}, True),
    "gpt-oss": ("gpt_oss", {"rope_parameters": YARN}, True),
    "deepseek v3": ("deepseek_v3", {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}, True),
    "deepseek v3, two dense blocks first": ("deepseek_v3", {"first_k_dense_replace": 2, "q_lora_rank": None}, True),
    "glm 4": ("glm4", {"partial_rotary_factor": 0.5}, True),
    "phi 3 with long rope": ("phi3", {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 8}, True),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_cut_gives_the_whole_models_bits(variant: str) -> None:
    family, changes, truncatable = VARIANTS[variant]
    with tiny_checkpoint(tiny_config(family, **changes)) as checkpoint:
        findings = compare(checkpoint)
    assert {heading: gap for heading, gap in findings.differences.items() if gap} == {}
    assert findings.truncatable is truncatable
    assert {"a prompt at once", "chunks and decode", "a second session in turn"} <= set(findings.differences)


@pytest.mark.parametrize(
    ("family", "apart"),
    [
        ("mixtral", "block_sparse_moe.experts.3.w2.weight"),
        ("qwen3_moe", "mlp.experts.3.down_proj.weight"),
        ("deepseek_v3", "mlp.experts.3.gate_proj.weight"),
    ],
)
def test_experts_come_from_the_checkpoint_apart_and_are_fused(family: str, apart: str) -> None:
    """What is compared above went through transformers' converters: on disk it looks as published checkpoints do."""
    with tiny_checkpoint(tiny_config(family)) as checkpoint:
        with safe_open(checkpoint.folder / "model.safetensors", framework="pt") as file:
            on_disk = set(file.keys())
        held = {name for name, _ in checkpoint.span(1, 2).model.named_parameters()}
    assert any(name.endswith(apart) for name in on_disk)
    assert not any(name.endswith(apart) for name in held)
    assert any(name.endswith("experts.gate_up_proj") for name in held)
