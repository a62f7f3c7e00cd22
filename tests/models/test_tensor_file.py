"""Headers of safetensors files: what the library writes is read, what is damaged is refused by name."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from swarmnode.errors import CheckpointBroken
from swarmnode.models.tensor_file import parse_header, read_header
from swarmnode.models.tensor_writer import TensorWriter
from swarmnode.models.weights import DTYPES, open_tensors

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.tensor(2.5, dtype=torch.bfloat16),
    "c": torch.zeros((0, 4), dtype=torch.float16),
    "d": torch.arange(5),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def test_reads_what_the_library_writes(file: Path) -> None:
    header = read_header(file)
    assert set(header) == set(TENSORS)
    for name, entry in header.items():
        assert entry.shape == tuple(TENSORS[name].shape)
        assert DTYPES[entry.dtype] == TENSORS[name].dtype
        assert entry.size == TENSORS[name].nbytes
    with open_tensors({file: sorted(TENSORS)}, "all") as (tensors, _):
        for name, tensor in TENSORS.items():
            assert torch.equal(tensors[name][...].to(), tensor)


def rewrite(file: Path, header: object) -> None:
    """Put another header before the same content."""
    old = file.read_bytes()
    content = old[8 + int.from_bytes(old[:8], "little") :]
    new = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(new).to_bytes(8, "little") + new + content)


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> object:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"\xff\xfe",
        b"[1]",
        b'{"a":' + b"[" * 100_000,
        {"a": 1},
        {"a": {}},
        entry(dtype="F33"),
        entry(dtype=["F32"]),
        entry(shape=(2,)),
        entry(shape="x"),
        entry(shape=(-1, -1)),
        entry(shape=(1.0,)),
        entry(offsets=(4, 0)),
        entry(offsets=(-4, 0)),
        entry(offsets=(0,)),
        entry(offsets=(10**9, 10**9 + 4)),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_by_name(file: Path, header: object) -> None:
    rewrite(file, header)
    with pytest.raises(CheckpointBroken, match=r"x\.safetensors"):
        read_header(file)


def test_every_way_of_cutting_a_file_off_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointBroken, match=r"x\.safetensors is damaged"):
            read_header(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointBroken, match="should end after"):
        read_header(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointBroken, match=r"gone\.safetensors cannot be read: No such file"):
        read_header(tmp_path / "gone.safetensors")


@given(header=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_garbage_raises_nothing_else(header: bytes) -> None:
    with suppress(CheckpointBroken):
        parse_header(header, "x")


def test_the_writer_takes_tensors_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    shapes = {name: (torch.bfloat16, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    with TensorWriter(path, shapes) as writer:
        for name in ("d", "a.weight", "c", "b"):
            writer.write(name, TENSORS[name])
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, TENSORS[name].to(torch.bfloat16))
    assert set(read_header(path)) == set(TENSORS)


def test_the_writer_refuses_what_was_not_announced(tmp_path: Path) -> None:
    announced = {"a": (torch.float32, (2, 2)), "b": (torch.float32, (1,))}
    with pytest.raises(CheckpointBroken, match="a has shape"), TensorWriter(tmp_path / "1", announced) as writer:
        writer.write("a", torch.zeros(4))
    with pytest.raises(CheckpointBroken, match="c is no tensor"), TensorWriter(tmp_path / "2", announced) as writer:
        writer.write("c", torch.zeros(4))
    with pytest.raises(CheckpointBroken, match="without b and 0"), TensorWriter(tmp_path / "3", announced) as writer:
        writer.write("a", torch.zeros(2, 2))
