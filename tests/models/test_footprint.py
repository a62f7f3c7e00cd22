"""What blocks are reckoned to take is what they take: weights and caches to the byte, steps within what is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import CONFIG_MAPPING

from swarmnode.models.cut import num_blocks
from swarmnode.models.families import all_certificates
from swarmnode.models.footprint import Footprint, footprint
from swarmnode.models.slabs import capacity
from swarmnode.models.tiny import tiny_config
from swarmnode.models.tiny_checkpoint import tiny_checkpoint
from swarmnode.node.capacity import STEP_BYTES, STEP_FACTOR

CERTIFIED = [entry.family for entry in all_certificates() if entry.certified]
GUESSED = ("diffllama", "jetmoe", "xmod", "qwen4_exp", "qwen4_exp_text")
"""What they take is an upper guess: the code of three branches on numbers; in two, like blocks keep a little more."""
HALF_KEPT = ("beam", "deepseek_v3", "hy_v3", "nemotron_h")
"""Some of their weights stay float32 whatever is asked for."""

STEP_TOKENS = 512
TOKENS_BEFORE = 1536


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(family: str, dtype: torch.dtype = torch.float32) -> Footprint:
    return footprint(tiny_config(family), dtype, step_tokens=16, session_tokens=48)


def test_a_llama_by_hand() -> None:
    found = tiny("llama")
    config = tiny_config("llama")
    wide, inner = config.hidden_size, config.intermediate_size
    heads, shared, head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    values = wide * head * (2 * heads + 2 * shared) + 3 * wide * inner + 2 * wide
    assert found.weights == (4 * values,) * config.num_hidden_layers
    assert found.token == (2 * 4 * shared * head,) * config.num_hidden_layers
    assert found.session == (0,) * config.num_hidden_layers
    assert found.step > 16 * wide * 4
    halves = tiny("llama", torch.bfloat16)
    assert [2 * each for each in halves.weights] == list(found.weights)
    assert [2 * each for each in halves.token] == list(found.token)
    assert halves.step < found.step


def test_a_state_that_does_not_grow_belongs_to_the_session() -> None:
    found = tiny("mamba2")
    assert set(found.token) == {0}
    assert min(found.session) > 0


def test_blocks_of_several_kinds_are_told_apart() -> None:
    assert len(set(tiny("deepseek_v3").weights)) == 2
    assert len(set(tiny("qwen3_next").token)) == 2


def test_a_model_far_too_large_for_this_machine_is_reckoned() -> None:
    config = CONFIG_MAPPING["llama"](
        hidden_size=16384,
        intermediate_size=53248,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
    )
    found = footprint(config, torch.bfloat16, step_tokens=256, session_tokens=131072)
    assert sum(found.weights) > 700e9
    assert found.reach > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", CERTIFIED)
def test_every_family_takes_what_was_reckoned(family: str) -> None:
    found = tiny(family)
    with tiny_checkpoint(tiny_config(family)) as checkpoint:
        span = checkpoint.span(0, num_blocks(checkpoint.config))
        for block in range(span.num_blocks):
            part = span.part(block, block + 1)
            assert part.weight_bytes == found.weights[block]
            assert part.token_bytes <= found.token[block]
            assert part.cache_bytes(1) <= found.token[block] * capacity(1) + found.session[block]
            if family not in GUESSED:
                assert part.token_bytes == found.token[block]
                assert part.ragged or part.cache_bytes(1) == found.token[block] + found.session[block]
        if family in HALF_KEPT:
            halves = checkpoint.span(0, span.num_blocks, torch.bfloat16)
            weights = [halves.part(block, block + 1).weight_bytes for block in range(span.num_blocks)]
            assert tuple(weights) == tiny(family, torch.bfloat16).weights


MEASURED = """
import json, sys, torch
from transformers import CONFIG_MAPPING
from swarmnode.models.cut import causal_class, find_layout, num_blocks, quiet_transformers, Part
from swarmnode.models.span import Span

family, fields, dtype, tokens, before = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.set_default_dtype(getattr(torch, dtype))
with quiet_transformers():
    stock, config = causal_class(CONFIG_MAPPING[family](**fields))
    model = stock(config).eval()
model.swarmnode_layout = find_layout(model)
model.part = Part("span", 0, num_blocks(model.config))

def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

def taken(run):
    held = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    run()
    return status("VmHWM") - held

first, far = [], []
for block in range(num_blocks(model.config)):
    span = Span(model, block, block + 1)
    hidden = torch.randn(1, tokens, span.hidden_size)
    cache = span.open_cache()
    first.append(taken(lambda: span.step(cache, hidden, 0)))
    for position in range(tokens, before, tokens):
        span.step(cache, hidden, position)
    far.append(taken(lambda: span.step(cache, hidden, before)))
print(json.dumps([max(first), max(far)]))
"""

SMALL = {"vocab_size": 100, "num_hidden_layers": 1, "num_attention_heads": 16}
SHAPES: dict[str, dict[str, object]] = {
    "llama": {**SMALL, "hidden_size": 2048, "intermediate_size": 5632, "num_key_value_heads": 4},
    "mixtral": {**SMALL, "hidden_size": 1024, "intermediate_size": 1792, "num_key_value_heads": 4},
    # Its attention makes all scores.
    "gemma2": {**SMALL, "hidden_size": 1152, "intermediate_size": 4096, "num_key_value_heads": 4, "head_dim": 128},
    # Its heads are of two widths, which the CPU's fused attention does not do.
    "deepseek_v3": {
        **{**SMALL, "hidden_size": 1024, "intermediate_size": 2048, "num_key_value_heads": 16},
        "first_k_dense_replace": 1,
    },
    # No attention at all.
    "mamba2": {"vocab_size": 100, "num_hidden_layers": 1, "hidden_size": 1024, "num_heads": 32},
}


@pytest.mark.slow
@pytest.mark.in_turns
@pytest.mark.skipif(sys.platform != "linux", reason="reads peaks from /proc")
@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, "float32") for family in SHAPES), ("gemma2", "bfloat16"), ("mixtral", "bfloat16")]
)
def test_a_real_step_takes_no_more_than_was_reckoned(
    family: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = json.dumps([family, SHAPES[family], dtype, STEP_TOKENS, TOKENS_BEFORE])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, asked],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    first, far = json.loads(done.stdout)
    config = CONFIG_MAPPING[family](**SHAPES[family])
    found = footprint(
        config, getattr(torch, dtype), step_tokens=STEP_TOKENS, session_tokens=STEP_TOKENS + TOKENS_BEFORE
    )
    last = found.step + found.reach * TOKENS_BEFORE
    with capsys.disabled():
        print(
            f"\n{family} {dtype}: first step {first >> 20} MiB where {found.step >> 20} were reckoned, "
            f"one behind {TOKENS_BEFORE} tokens {far >> 20} where {round(last) >> 20}"
        )
    assert first <= STEP_FACTOR * found.step + STEP_BYTES
    assert far <= STEP_FACTOR * last + STEP_BYTES
    assert found.step <= 2 * first
