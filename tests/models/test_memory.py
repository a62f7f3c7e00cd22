"""A server of a third of the blocks peaks at a third of the weights and a constant, whatever the types.

Measured on a model of more than 1 GB made here, each load in a fresh process, against a process that loads nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.slow

BLOCKS = 12
LEAST_BYTES = 1 << 30

CONSTANT_BYTES = 64 << 20
"""Room for what any load needs besides: pieces being read and converted, and transformers' bookkeeping."""

PROGRAM = """
import json, resource, sys
import torch
from swarmnode.models.checkpoint import open_checkpoint
torch.set_num_threads(1)
folder, what, dtype = sys.argv[1:]
checkpoint = open_checkpoint(folder)
warm = open_checkpoint(sys.argv[1] + "-tiny")
warm.load_span(0, 1), warm.load_ends()
if what == "ends":
    loaded = checkpoint.load_ends(dtype=getattr(torch, dtype)).weight_bytes
elif what == "nothing":
    loaded = 0
else:
    start, end = map(int, what.split(":"))
    loaded = checkpoint.load_span(start, end, dtype=getattr(torch, dtype)).weight_bytes
peak = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"loaded": loaded, "peak": peak}))
"""


def config(**fields: int) -> LlamaConfig:
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "vocab_size": 32000, "num_hidden_layers": BLOCKS}
    return LlamaConfig(**{**sizes, "num_attention_heads": 16, "num_key_value_heads": 8, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.2 GB of random bfloat16 in shards of 200 MB, and a tiny model beside it."""
    folder = tmp_path_factory.mktemp("big") / "model"
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(config()).save_pretrained(folder, max_shard_size="200MB")
        tiny = config(hidden_size=64, intermediate_size=64, vocab_size=64, num_hidden_layers=2)
        LlamaForCausalLM(tiny).save_pretrained(f"{folder}-tiny")
    finally:
        torch.set_default_dtype(default)
    weights = list(folder.glob("*.safetensors"))
    assert len(weights) > 4
    assert sum(path.stat().st_size for path in weights) > LEAST_BYTES
    return folder


def run(folder: Path, what: str, dtype: str = "bfloat16") -> tuple[int, int]:
    """The bytes loaded and the process's peak."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), what, dtype],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    return told["loaded"], told["peak"]


@pytest.mark.in_turns
@pytest.mark.timeout(900)
def test_a_part_peaks_at_its_own_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    _, nothing = run(folder, "nothing")
    lines = [f"stored {stored >> 20} MiB; a process that loads nothing peaks at {nothing >> 20} MiB"]
    third = f"{BLOCKS // 3}:{2 * BLOCKS // 3}"
    beyond = []
    for what, dtype in [(third, "bfloat16"), (third, "float16"), (third, "float32"), ("ends", "float32")]:
        loaded, peak = run(folder, what, dtype)
        grown = peak - nothing
        beyond.append(grown - loaded)
        lines.append(f"{what} {dtype}: {loaded >> 20} MiB of weights, {grown >> 20} MiB more at the peak")
        if (what, dtype) == (third, "bfloat16"):
            assert loaded < stored / 3
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert max(beyond) < CONSTANT_BYTES, lines
