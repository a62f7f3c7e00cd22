"""Checkpoints that come quantised: spans of them are what transformers makes of the whole, or are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, PretrainedConfig

from swarmnode.errors import BadInput
from swarmnode.models import ready_made
from swarmnode.models.checkpoint import open_checkpoint
from swarmnode.models.cut import causal_class, quiet_transformers

BLOCKS = 4
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "dtype": "bfloat16",
}
TILE = 128
"""Rows and columns that share a scale in fp8."""
NIBBLES = 32
"""Of a row, how many numbers share a scale in mxfp4."""

Tensors = dict[str, torch.Tensor]


def save(
    folder: Path, config: PretrainedConfig, change: Callable[[str, torch.Tensor], Tensors], **settings: object
) -> str:
    """A random model whose tensors are replaced by what `change` makes of them, and whose config says so."""
    torch.manual_seed(8)
    stock, own = causal_class(config)
    with quiet_transformers():
        stock(own).to(torch.bfloat16).save_pretrained(folder)
    tensors: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors |= change(name, tensor)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "quantization_config": settings}))
    return str(folder)


def to_fp8(name: str, weight: torch.Tensor) -> Tensors:
    """Linear layers of blocks in tiles of 8-bit floats."""
    if "proj.weight" not in name:
        return {name: weight}
    rows, columns = weight.shape
    tiles = weight.float().view(rows // TILE, TILE, columns // TILE, TILE)
    scale = tiles.abs().amax((1, 3)) / 448
    coded = (tiles / scale[:, None, :, None]).view_as(weight).to(torch.float8_e4m3fn)
    return {name: coded, f"{name}_scale_inv": scale}


def to_mxfp4(name: str, weight: torch.Tensor) -> Tensors:
    """Experts in random 4-bit floats."""
    if not name.endswith(("gate_up_proj", "down_proj")):
        return {name: weight}
    experts, columns, rows = weight.shape
    generator = torch.Generator().manual_seed(len(name))
    shape = (experts, rows, columns // NIBBLES)
    return {
        f"{name}_blocks": torch.randint(0, 256, (*shape, NIBBLES // 2), dtype=torch.uint8, generator=generator),
        f"{name}_scales": torch.randint(118, 124, shape, dtype=torch.uint8, generator=generator),
    }


def unchanged(name: str, weight: torch.Tensor) -> Tensors:
    return {name: weight}


def fp8(folder: Path) -> str:
    settings = {"activation_scheme": "dynamic", "weight_block_size": [TILE, TILE]}
    return save(folder, LlamaConfig(**SIZES), to_fp8, quant_method="fp8", **settings)


def mxfp4(folder: Path) -> str:
    config = GptOssConfig(
        **{**SIZES, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16},
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * (BLOCKS // 2),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return save(folder, config, to_mxfp4, quant_method="mxfp4")


@pytest.mark.parametrize("make", [fp8, mxfp4], ids=lambda make: make.__name__)
@pytest.mark.parametrize("cut", [1, 3])
def test_spans_make_what_transformers_makes_of_the_whole(
    tmp_path: Path, make: Callable[[Path], str], cut: int, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.quantisation == make.__name__
    ends, spans = checkpoint.load_ends(), [checkpoint.load_span(0, cut), checkpoint.load_span(cut, BLOCKS)]
    assert capfd.readouterr() == ("", "")
    ids = torch.tensor([[1, 5, 3, 9, 2]])
    hidden = ends.embed(ids, 0)
    for span in spans:
        hidden = span.step(span.open_session(), hidden, 0)
    with quiet_transformers():
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        assert torch.equal(ends.logits(hidden, last_only=False), whole(ids, use_cache=False).logits.float())


def test_what_comes_quantised_is_not_quantised_again(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"quantised already \(fp8\)"):
        open_checkpoint(fp8(tmp_path / "model")).load_span(0, 1, quant="int8")


@pytest.mark.parametrize("method", sorted(ready_made.PACKAGES))
def test_a_missing_package_is_named(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who only asks needs none, as long as it is the blocks that are quantised."""
    module, package = ready_made.PACKAGES[method]
    monkeypatch.setattr(ready_made, "find_spec", lambda name: None)
    checkpoint = open_checkpoint(save(tmp_path / "model", LlamaConfig(**SIZES), unchanged, quant_method=method))
    with pytest.raises(BadInput) as refused:
        checkpoint.load_span(0, 1)
    assert refused.value.message == (
        f"The weights of model are quantised ({method}), and {module}, which reads them, is not installed."
    )
    assert f"pip install '{package}'" in str(refused.value.hint)
    assert checkpoint.load_ends().hidden_size == SIZES["hidden_size"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without an accelerator")
@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("fbgemm_fp8", "requires a GPU"),
        ("higgs", "only supported on GPU"),
        ("torchao", "the headers of its files say"),
        ("compressed-tensors", "the whole model is called"),
        ("of-tomorrow", "Unknown quantization type"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_sentence(tmp_path: Path, method: str, words: str) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "model", LlamaConfig(**SIZES), unchanged, quant_method=method))
    with pytest.raises(BadInput, match=rf"quantised \({method}\).*{words}"):
        checkpoint.load_span(0, 1)
