"""Devices and dtypes by the names that people write."""

from __future__ import annotations

import pytest
import torch

from swarmnode.errors import BadInput
from swarmnode.node.places import torch_device, torch_devices, torch_dtype


def test_dtypes() -> None:
    assert torch_dtype("auto", torch.bfloat16) is torch.bfloat16
    assert torch_dtype("auto", torch.float8_e4m3fn) is torch.float32
    assert torch_dtype("float16", torch.bfloat16) is torch.float16
    with pytest.raises(BadInput, match="'int8' is no dtype"):
        torch_dtype("int8", torch.float32)


def test_devices() -> None:
    assert torch_device("cpu") == torch.device("cpu")
    assert torch_device("auto").type in {"cpu", "cuda", "mps", "xpu"}
    with pytest.raises(BadInput, match="'gpu' is no device"):
        torch_device("gpu")
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(BadInput, match=f"There is no {absent} device here"):
        torch_device(absent)


def test_several_devices() -> None:
    assert torch_devices("cpu") == (torch.device("cpu"),)
    assert torch_devices("auto")[0].type == torch_device("auto").type
    with pytest.raises(BadInput, match="'gpu' is no device"):
        torch_devices("cpu,gpu")
    with pytest.raises(BadInput, match="Blocks cannot be split over 'cpu, cpu'"):
        torch_devices("cpu, cpu")
