"""What single model families do differently when cut: one small table, everything not in it follows the common way.

Knows neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Quirks", "one_by_one", "quirks_of", "refusal"]


@dataclass(frozen=True)
class Quirks:
    """How a family departs from the common way.

    Attributes:
        block_returns: how many values its blocks return, hidden state first; 0 for a bare tensor.
        num_blocks_field: the config field that counts the blocks.
        streams_field: the config field that counts the parallel hidden states between blocks, if there are several.
        single_steps: its stock code forgets its state when several tokens follow earlier ones: one by one, then.
        why_not: why it cannot be cut, where the failure itself does not say so.
    """

    block_returns: int = 0
    num_blocks_field: str = "num_hidden_layers"
    streams_field: str = ""
    single_steps: bool = False
    why_not: str = ""


_COMMON = Quirks()


def _each(families: str, quirks: Quirks) -> dict[str, Quirks]:
    return dict.fromkeys(families.split(), quirks)


_TABLE: dict[str, Quirks] = {
    **_each(
        "bloom codegen falcon falcon_h1 gpt_neo gpt_neox_japanese gptj megatron-bert mpt rembert roformer trocr",
        Quirks(block_returns=1),
    ),
    **_each("bamba glm_moe_dsa", Quirks(block_returns=2)),
    **_each("falcon_mamba jamba mamba", Quirks(single_steps=True)),
    **_each("qwen4_exp qwen4_exp_text", Quirks(streams_field="hc_count")),
    "longcat_flash": Quirks(num_blocks_field="num_layers"),
    # What cannot be cut, and why.
    **_each(
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen musicgen_melody mvp pegasus plbart"
        " prophetnet whisper",
        Quirks(why_not="It is an encoder-decoder: its blocks attend to an encoder's output."),
    ),
    **_each("gemma3n gemma3n_text", Quirks(why_not="Its later blocks read the keys and values of earlier ones.")),
    **_each(
        "gemma4_assistant gemma4_unified_assistant",
        Quirks(why_not="It is a draft model that reads the keys and values of another model."),
    ),
    **_each("deepseek_v4", Quirks(why_not="Its first blocks route by token ids, which servers do not see.")),
    **_each("hy_v4", Quirks(why_not="Some blocks reuse the token choice of an earlier block.")),
    **_each(
        "zamba zamba2", Quirks(why_not="Its blocks share weights and read the embeddings beside the hidden state.")
    ),
    **_each("zaya", Quirks(why_not="Its routers read the router state of the block before.")),
    **_each("inkling2_text", Quirks(why_not="Its blocks attend to the outputs of several earlier blocks.")),
    **_each(
        "minimax recurrent_gemma rwkv xlstm", Quirks(why_not="It keeps its state outside transformers' common caches.")
    ),
    **_each("hrm_text", Quirks(why_not="It runs its blocks several times over in nested loops.")),
    **_each("git mllama", Quirks(why_not="It answers about images; without one some of its blocks do not run.")),
    **_each("xlnet", Quirks(why_not="Its blocks carry two streams and no ordinary cache.")),
    **_each("xlm", Quirks(why_not="It keeps no list of whole blocks.")),
    **_each("openai-gpt", Quirks(why_not="Its stock code has no cache.")),
    **_each("blt", Quirks(why_not="It groups bytes into patches by a second model.")),
    **_each("cpmant", Quirks(why_not="It puts prompt embeddings of its own before the tokens of every step.")),
    **_each("moshi", Quirks(why_not="It speaks and listens: its decoder works on audio codes beside the text.")),
    **_each("reformer", Quirks(why_not="Its reversible blocks carry two streams and hash buckets of their own.")),
}


def quirks_of(family: str) -> Quirks:
    """The quirks of a model type."""
    return _TABLE.get(family, _COMMON)


_ENCODERS = frozenset(
    (
        *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
        *(
            "rembert",
            "roberta",
            "roberta-prelayernorm",
            "roc_bert",
            "roformer",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
        ),
    )
)
"""Families made as encoders: certified as the decoders that they are with `is_decoder` set."""

_BEYOND_A_HIDDEN_STATE = {
    "num_kv_shared_layers": "Its later blocks read the keys and values of earlier ones",
    "hidden_size_per_layer_input": "Its blocks read embeddings of the token ids, which servers do not see",
    "ple_layer_ids": "Its blocks read embeddings of the token ids, which servers do not see",
}
"""Config fields that, when set, let blocks see more of each other than the hidden state."""


def refusal(config: Any) -> str:
    """Why a config of a certified family is nonetheless outside what was certified; empty when it is inside.

    Args:
        config: a transformers config (its text section counts).
    """
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False):
        return "The model is an encoder-decoder (`is_encoder_decoder`)."
    if config.model_type in _ENCODERS and not getattr(text, "is_decoder", False):
        return "The model is an encoder (`is_decoder` is false in its config)."
    if "shared" in (getattr(text, "indexer_types", None) or ()):
        return "Some blocks reuse the token choice of an earlier block (`indexer_types`)."
    if "dynamic" in _rope_types(getattr(text, "rope_parameters", None) or {}):
        return "Its rotary positions depend on the longest prompt of any session (`rope_type` is dynamic)."
    for field, reason in _BEYOND_A_HIDDEN_STATE.items():
        if getattr(text, field, None):
            return f"{reason} (`{field}`)."
    return ""


def one_by_one(config: Any) -> str:
    """Why sessions of a config, whose family runs raggedly, need a pass each nonetheless; empty when they do not."""
    text = config.get_text_config(decoder=True)
    if "longrope" in _rope_types(getattr(text, "rope_parameters", None) or {}):
        return "Its rotary positions depend on how long the longest session in a pass is (`rope_type` is longrope)."
    return ""


def _rope_types(parameters: dict[str, Any]) -> set[object]:
    """The kinds of rotary positions in use: one, or one for each kind of attention."""
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {each.get("rope_type") for each in (parameters, *nested)}
