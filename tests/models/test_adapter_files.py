"""What an adapter's files may be: every kind that cannot be served, and every damage, is refused in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig

from support.tiny_adapter import save_adapter
from swarmnode.errors import BadInput, CheckpointBroken, ModelNotFound, SwarmnodeError
from swarmnode.models import adapters
from swarmnode.models.adapter_config import read_settings
from swarmnode.models.adapters import Adapter, open_adapter
from swarmnode.models.tiny import tiny_config
from swarmnode.models.tiny_checkpoint import TinyCheckpoint, tiny_checkpoint

LAYER = "base_model.model.model.layers.1.self_attn.q_proj.lora_"


@pytest.fixture(scope="module")
def llama() -> Iterator[TinyCheckpoint]:
    with tiny_checkpoint(tiny_config("llama")) as made:
        yield made


@pytest.fixture(scope="module")
def poet(llama: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(llama.whole, tmp_path_factory.mktemp("adapters") / "poet", ["q_proj", "v_proj"], r=4)


def opened(folder: Path, config: PretrainedConfig | None = None) -> Adapter:
    return open_adapter("poet", str(folder), config or tiny_config("llama"))


def changed(
    source: Path,
    target: Path,
    tensors: Callable[[dict[str, torch.Tensor]], object] = lambda held: None,
    **settings: Any,
) -> Path:
    """A copy of an adapter with other tensors and settings."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    held = load_file(source / "adapter_model.safetensors")
    tensors(held)
    save_file(held, target / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps(config | settings))
    return target


def test_an_adapter_is_known_by_its_content(poet: Path, tmp_path: Path) -> None:
    adapter = opened(poet)
    assert [(layer.block, layer.rank, layer.scaling) for layer in adapter.layers] == [
        (block // 2, 4, 2.0) for block in range(8)
    ]
    assert adapter.block_bytes(4, torch.bfloat16) == [2 * 4 * (64 + 64 + 64 + 32)] * 4
    # Written anew, in another order, with other remarks: the same.
    same = changed(poet, tmp_path / "same", base_model_name_or_path="x/y", lora_dropout=0.5, peft_version="9")
    assert opened(same).digest == adapter.digest
    others = [
        changed(poet, tmp_path / "louder", lora_alpha=16),
        changed(poet, tmp_path / "less", lambda held: [held.pop(f"{LAYER}{part}.weight") for part in "AB"]),
        changed(poet, tmp_path / "other", lambda held: held[f"{LAYER}A.weight"].view(-1)[5:6].add_(1e-3)),
    ]
    assert len({adapter.digest, *(opened(other).digest for other in others)}) == 4


def test_weights_saved_by_torch_are_read_as_data_only(poet: Path, tmp_path: Path) -> None:
    old = changed(poet, tmp_path / "old")
    (old / "adapter_model.safetensors").unlink()
    torch.save(load_file(poet / "adapter_model.safetensors"), old / "adapter_model.bin")
    assert opened(old).digest == opened(poet).digest
    torch.save({"a": print}, old / "adapter_model.bin")
    with pytest.raises(CheckpointBroken, match="something else than weights"):
        opened(old)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"peft_type": "LOHA"}, "is of type 'LOHA', not LORA"),
        ({"peft_type": None}, "is of type None"),
        ({"use_dora": True}, "is a DoRA adapter"),
        ({"modules_to_save": ["lm_head"]}, "brings whole modules"),
        ({"trainable_token_indices": [1]}, "brings token embeddings"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "adapts parameters that are no layers"),
        ({"bias": "all"}, "uses 'bias'"),
        ({"use_qalora": True}, "uses 'use_qalora'"),
        ({"what_comes_tomorrow": 3}, "uses 'what_comes_tomorrow'"),
        ({"init_lora_weights": "pissa_niter_4"}, "a model that its training changed, too"),
        ({"init_lora_weights": ["olora"]}, "a model that its training changed, too"),
    ],
)
def test_kinds_that_cannot_be_served(settings: dict[str, object], refused: str) -> None:
    with pytest.raises(BadInput, match=refused):
        read_settings("poet", {"peft_type": "LORA"} | settings)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": "8"}, "r is '8'"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"lora_alpha": 1e40}, "lora_alpha is 1e"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is no table"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern is 0"),
        ({"alpha_pattern": {"(": 1}}, "is no pattern"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "too intricate"),
        ({"alpha_pattern": {"(a|a)" * 20: 1}}, "too intricate"),
        ({"alpha_pattern": {".*" * 10: 1}}, "too intricate"),
        ({"alpha_pattern": {"a" * 300: 1}}, "too intricate"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], refused: str) -> None:
    with pytest.raises(CheckpointBroken, match=refused):
        read_settings("poet", {"peft_type": "LORA"} | settings)


def renamed(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def rename(held: dict[str, torch.Tensor]) -> None:
        for part in "AB":
            held[f"base_model.model.{name}.lora_{part}.weight"] = held.pop(f"{LAYER}{part}.weight")

    return rename


def put(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda held: held.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "error", "refused"),
    [
        (
            put("base_model.model.lm_head.weight", 96, 64),
            BadInput,
            "holds base_model.model.lm_head.weight, which is no LoRA",
        ),
        (put(f"{LAYER}magnitude_vector.weight", 64), BadInput, "no LoRA matrix"),
        (put("base_model.model.model.embed_tokens.lora_embedding_A", 4, 96), BadInput, "no LoRA matrix"),
        (renamed("lm_head"), BadInput, "adapts lm_head, which is outside the blocks"),
        (renamed("model.layers.1.input_layernorm"), BadInput, "input_layernorm, which is no linear layer"),
        (renamed("model.layers.7.self_attn.q_proj"), BadInput, "which is no layer of this llama model"),
        (renamed("x" * 5000), BadInput, "x…, which is no layer"),
        (
            lambda held: held.pop(f"{LAYER}B.weight"),
            CheckpointBroken,
            "half of a layer: model.layers.1.self_attn.q_proj",
        ),
        (lambda held: held.clear(), CheckpointBroken, "holds no tensors"),
        (put(f"{LAYER}A.weight", 4, 32), BadInput, "for another model: its matrices .* are 4 × 32 and 64 × 4"),
        (put(f"{LAYER}B.weight", 64, 5), BadInput, "for another model"),
        (put(f"{LAYER}B.bias", 3), BadInput, "for another model"),
        (put(f"{LAYER}A.weight", 0, 64), BadInput, "has rank 0"),
        (put(f"{LAYER}A.weight"), BadInput, "has rank 0"),
        (put(f"{LAYER}A.weight", 2000, 64), BadInput, "has rank 2000; 1 to 1024"),
        (
            lambda held: held.update({f"{LAYER}A.weight": torch.zeros(2, 64), f"{LAYER}B.weight": torch.zeros(64, 2)}),
            CheckpointBroken,
            "says rank 4 for model.layers.1.self_attn.q_proj, but its matrices have 2",
        ),
    ],
)
def test_tensors_that_fit_nothing(
    poet: Path,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], object],
    error: type[SwarmnodeError],
    refused: str,
) -> None:
    with pytest.raises(error, match=refused):
        opened(changed(poet, tmp_path / "bad", change))


def test_an_adapter_of_another_model_says_for_which(poet: Path, tmp_path: Path) -> None:
    named = changed(poet, tmp_path / "named", base_model_name_or_path="org/larger")
    with pytest.raises(BadInput, match="for another model") as refused:
        opened(named, tiny_config("llama", hidden_size=128))
    assert refused.value.hint == "It says that it is for org/larger."


def test_single_experts_are_refused(poet: Path, tmp_path: Path) -> None:
    old_mixtral = changed(poet, tmp_path / "old", renamed("model.layers.1.block_sparse_moe.experts.2.w1"))
    with pytest.raises(BadInput, match=r"experts\.2\.w1, which is no layer of this mixtral model"):
        opened(old_mixtral, tiny_config("mixtral"))


def test_damaged_files(poet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = changed(poet, tmp_path / "bad")
    weights, config = bad / "adapter_model.safetensors", bad / "adapter_config.json"
    whole = weights.read_bytes()
    for content, refused in (
        (whole[:-1], "damaged"),
        (whole + b"\0", "damaged"),
        (b"\xff" * 64, "damaged"),
        (b"", "damaged"),
    ):
        weights.write_bytes(content)
        with pytest.raises(CheckpointBroken, match=refused):
            opened(bad)
    weights.unlink()
    with pytest.raises(CheckpointBroken, match=r"has no adapter_model\.safetensors"):
        opened(bad)
    weights.write_bytes(whole)
    for text, refused in (("[]", "no JSON object"), ("{", "not valid JSON"), (" " * (1 << 20) + "{}", "too large")):
        config.write_text(text)
        with pytest.raises(CheckpointBroken, match=refused):
            opened(bad)
    config.unlink()
    with pytest.raises(CheckpointBroken, match=r"has no adapter_config\.json"):
        opened(bad)
    monkeypatch.setattr(adapters, "MAX_ADAPTER_BYTES", 1000)
    with pytest.raises(CheckpointBroken, match="an adapter may have 1,000"):
        opened(poet)


def test_where_there_is_none_it_says_so(tmp_path: Path) -> None:
    for where in (str(tmp_path / "nowhere"), "", "a/b/c", "x" * 5000):
        with pytest.raises(ModelNotFound, match="There is no adapter"):
            open_adapter("poet", where, tiny_config("llama"))
