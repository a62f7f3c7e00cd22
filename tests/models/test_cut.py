"""Parts take exactly their tensors, say what is missing, and together are the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from swarmnode.errors import BadRange, CheckpointBroken, FamilyNotCertified
from swarmnode.models.cut import Part, build_part, part_tensor_name, part_tensor_names
from swarmnode.models.tiny import tiny_config
from swarmnode.models.tiny_checkpoint import TinyCheckpoint, tiny_checkpoint

SPAN = Part("span", 1, 3)


def tensors_of(checkpoint: TinyCheckpoint, part: Part) -> dict[str, torch.Tensor]:
    stored = load_file(checkpoint.folder / "model.safetensors")
    return {name: stored[name] for name in part_tensor_names(checkpoint.config, part, stored)}


def build(checkpoint: TinyCheckpoint, part: Part, tensors: dict[str, torch.Tensor]) -> Any:
    return build_part(checkpoint.config, part, tensors, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "mixtral", "gpt_oss", "qwen3_5", "gemma3", "deepseek_v3"])
def test_parts_share_out_every_tensor_of_the_text_model(family: str) -> None:
    with tiny_checkpoint(tiny_config(family)) as checkpoint:
        stored = set(load_file(checkpoint.folder / "model.safetensors"))
        parts = [Part("ends"), *(Part("span", block, block + 1) for block in range(4))]
        shares = [set(part_tensor_names(checkpoint.config, part, sorted(stored))) for part in parts]
    for one in range(len(shares)):
        assert shares[one]
        assert not any(shares[one] & shares[other] for other in range(one))
    left = stored - set().union(*shares)
    assert all("vision" in name or "multi_modal" in name for name in left)


def test_names_of_published_checkpoints_without_the_models_prefix_are_known() -> None:
    config = tiny_config("gpt2")
    assert part_tensor_name(config, SPAN, "h.1.attn.c_attn.weight") == "h.1.attn.c_attn.weight"
    assert part_tensor_name(config, SPAN, "transformer.h.2.ln_1.weight") == "transformer.h.2.ln_1.weight"
    assert part_tensor_name(config, SPAN, "h.3.ln_1.weight") is None
    assert part_tensor_name(config, SPAN, "wte.weight") is None
    assert part_tensor_name(config, Part("ends"), "wte.weight") == "wte.weight"
    assert part_tensor_name(config, Part("ends"), "h.1.ln_1.weight") is None


def test_blocks_beyond_the_model_are_nobodys() -> None:
    """Published DeepSeek V3 weights hold a further block for multi-token prediction."""
    config = tiny_config("deepseek_v3")
    name = "model.layers.4.self_attn.o_proj.weight"
    assert all(part_tensor_name(config, part, name) is None for part in (Part("span", 0, 4), Part("ends")))


def test_missing_tensors_are_named() -> None:
    with tiny_checkpoint(tiny_config("llama")) as checkpoint:
        tensors = tensors_of(checkpoint, SPAN)
        del tensors["model.layers.2.mlp.up_proj.weight"]
        with pytest.raises(CheckpointBroken) as broken:
            build(checkpoint, SPAN, tensors)
    assert broken.value.message == "The checkpoint lacks 1 tensors of blocks 1:3: model.layers.2.mlp.up_proj.weight."
    assert "download" in broken.value.hint


def test_many_missing_tensors_are_counted() -> None:
    with tiny_checkpoint(tiny_config("llama")) as checkpoint, pytest.raises(CheckpointBroken, match="and 13 more"):
        build(checkpoint, SPAN, {})


def test_a_missing_embedding_is_named() -> None:
    with tiny_checkpoint(tiny_config("llama", tie_word_embeddings=True)) as checkpoint:
        tensors = tensors_of(checkpoint, Part("ends"))
        del tensors["model.embed_tokens.weight"]
        with pytest.raises(CheckpointBroken, match=r"the model's ends: .*model\.embed_tokens\.weight"):
            build(checkpoint, Part("ends"), tensors)


def test_a_tensor_of_another_shape_is_named() -> None:
    with tiny_checkpoint(tiny_config("llama")) as checkpoint:
        tensors = tensors_of(checkpoint, SPAN)
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
        with pytest.raises(CheckpointBroken, match=r"another shape .*model\.layers\.1\.mlp\.up_proj\.weight"):
            build(checkpoint, SPAN, tensors)


def test_a_missing_expert_does_not_pass() -> None:
    with tiny_checkpoint(tiny_config("mixtral")) as checkpoint:
        tensors = tensors_of(checkpoint, SPAN)
        del tensors["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
        with pytest.raises(CheckpointBroken):
            build(checkpoint, SPAN, tensors)


@pytest.mark.parametrize(("start", "end"), [(0, 5), (-1, 2), (2, 2), (3, 1)])
def test_a_range_outside_the_model_is_refused(start: int, end: int) -> None:
    config = tiny_config("llama")
    with pytest.raises(BadRange, match="has 0:4"):
        part_tensor_names(config, Part("span", start, end), [])
    with pytest.raises(BadRange, match="has 0:4"):
        build_part(config, Part("span", start, end), {}, dtype=torch.float32, device="cpu")


def test_a_family_without_blocks_is_refused() -> None:
    with pytest.raises(FamilyNotCertified, match="'hrm_text' keeps no plain list"):
        part_tensor_names(tiny_config("hrm_text"), Part("ends"), [])


def test_weights_are_the_given_storage_when_nothing_has_to_change() -> None:
    """No second copy in memory: a float32 tensor in a float32 part is the very tensor that was read."""
    with tiny_checkpoint(tiny_config("llama")) as checkpoint:
        tensors = tensors_of(checkpoint, SPAN)
        model = build(checkpoint, SPAN, tensors)
    held = dict(model.named_parameters())
    assert held.keys() == tensors.keys()
    assert all(held[name].data_ptr() == tensor.data_ptr() for name, tensor in tensors.items())


def test_a_part_goes_to_the_device_asked_for() -> None:
    """The meta device stands for an accelerator: everything moves, buffers too."""
    with tiny_checkpoint(tiny_config("llama")) as checkpoint:
        tensors = tensors_of(checkpoint, SPAN)
        model = build_part(checkpoint.config, SPAN, tensors, dtype=torch.float32, device="meta")
    assert {weight.device.type for weight in (*model.parameters(), *model.buffers())} == {"meta"}
