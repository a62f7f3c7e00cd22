"""Different weights are different models; the same weights are the same model wherever they lie."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from support.tiny_llama import save_tiny_llama
from swarmnode.models.checkpoint import Checkpoint, open_checkpoint
from swarmnode.models.identity import SLICE_BYTES, sample


def identity(folder: Path) -> tuple[str, str, bytes]:
    checkpoint: Checkpoint = open_checkpoint(str(folder))
    return checkpoint.name, checkpoint.revision, checkpoint.digest


def test_a_copy_is_the_same_model(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "one" / "m")
    shutil.copytree(tmp_path / "one" / "m", tmp_path / "two" / "m")
    assert identity(tmp_path / "one" / "m") == identity(tmp_path / "two" / "m")
    assert len(identity(tmp_path / "one" / "m")[2]) == 32


@pytest.mark.parametrize("shard", ["5GB", "40KB"])
@pytest.mark.parametrize("pickled", [False, True])
def test_two_fine_tunes_of_one_base_differ(tmp_path: Path, shard: str, pickled: bool) -> None:
    for seed, place in enumerate(("one", "two")):
        save_tiny_llama(tmp_path / place / "m", seed=seed, shard=shard, pickled=pickled)
    one, two = identity(tmp_path / "one" / "m"), identity(tmp_path / "two" / "m")
    assert one[0] == two[0]
    assert one[1] != two[1]
    assert one[2] != two[2]


def test_a_change_to_any_one_tensor_is_seen(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    seen = {identity(tmp_path / "m")[1]}
    for name, tensor in tensors.items():
        save_file({**tensors, name: tensor * 1.001}, path, metadata={"format": "pt"})
        seen.add(identity(tmp_path / "m")[1])
    assert len(seen) == 1 + len(tensors)


def test_who_wrote_the_config_does_not_matter_but_what_it_says_does(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    before = identity(tmp_path / "m")
    path.write_text(json.dumps({**config, "transformers_version": "9.9", "_name_or_path": "/home/x"}, indent=7))
    assert identity(tmp_path / "m") == before
    path.write_text(json.dumps({**config, "rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}))
    assert identity(tmp_path / "m")[2] != before[2]


def test_little_is_read_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_llama(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] = torch.zeros(64, 100_000)
    save_file(tensors, path, metadata={"format": "pt"})
    read = 0
    stock = os.pread

    def count(file: int, size: int, offset: int) -> bytes:
        nonlocal read
        read += size
        return stock(file, size, offset)

    monkeypatch.setattr("os.pread", count)
    open_checkpoint(str(tmp_path / "m"))
    assert 0 < read < 400_000 < path.stat().st_size / 50


@given(content=st.binary(max_size=6 * SLICE_BYTES), offset=st.integers(0, 50), slices=st.integers(2, 4))
def test_a_sample_holds_both_ends_and_no_more_than_it_may(content: bytes, offset: int, slices: int) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * offset + content + b"y" * 50)
        file.flush()
        taken = sample(file.fileno(), offset, len(content), slices)
    assert taken.startswith(len(content).to_bytes(8, "little"))
    body = taken[8:]
    if len(content) <= slices * SLICE_BYTES:
        assert body == content
    else:
        assert len(body) == slices * SLICE_BYTES
        assert body[:SLICE_BYTES] == content[:SLICE_BYTES]
        assert body[-SLICE_BYTES:] == content[-SLICE_BYTES:]
