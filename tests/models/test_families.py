"""What may be served, decided without torch; what is refused is refused by name, with the reason."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers import CONFIG_MAPPING, PretrainedConfig

from swarmnode.errors import FamilyNotCertified
from swarmnode.models.families import certificate, require_certified
from swarmnode.models.tiny import tiny_config


def test_reading_the_table_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from swarmnode.models.families import all_certificates; assert len(all_certificates()) > 100;"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("family", ["llama", "gemma4", "qwen3_5", "mamba", "bert"])
def test_a_certified_config_passes(family: str) -> None:
    require_certified(tiny_config(family))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CONFIG_MAPPING["xlm"](), "It keeps no list of whole blocks."),
        (CONFIG_MAPPING["bart"](), "It is an encoder-decoder: its blocks attend to an encoder's output."),
        (CONFIG_MAPPING["bert"](), "The model is an encoder (`is_decoder` is false in its config)."),
        (
            CONFIG_MAPPING["gemma4_text"](num_kv_shared_layers=10, hidden_size_per_layer_input=0),
            "Its later blocks read the keys and values of earlier ones (`num_kv_shared_layers`).",
        ),
        (
            CONFIG_MAPPING["gemma4_text"](hidden_size_per_layer_input=256),
            "Its blocks read embeddings of the token ids, which servers do not see (`hidden_size_per_layer_input`).",
        ),
        (
            CONFIG_MAPPING["llama"](rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}),
            "Its rotary positions depend on the longest prompt of any session (`rope_type` is dynamic).",
        ),
        (CONFIG_MAPPING["t5"](), "It is no causal language model that this version knows."),
    ],
    ids=lambda value: value.model_type if isinstance(value, PretrainedConfig) else "",
)
def test_anything_else_is_refused_by_name_and_reason(config: PretrainedConfig, reason: str) -> None:
    with pytest.raises(FamilyNotCertified) as refused:
        require_certified(config)
    assert refused.value.message == f"A model of the family {config.model_type!r} cannot be served in parts: {reason}"
    assert "swarmnode models" in refused.value.hint


def test_what_cannot_go_back_is_known() -> None:
    assert certificate("llama").truncatable
    assert not certificate("qwen3_5").truncatable
    assert not certificate("mamba").truncatable
