"""Long steps in half-width types: as good as float32, and each row's bits its own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from swarmnode.models import runs
from swarmnode.models.runs import WIDENED_BEYOND, widened


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_widened_product_is_that_of_float32_rounded(
    dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "WIDENED_BYTES", 4 * 96 * 50)  # several pieces, the last of them smaller
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(WIDENED_BEYOND + 5, 96, generator=generator).to(dtype)
    weight = torch.randn(120, 96, generator=generator).to(dtype)
    added = torch.randn(120, generator=generator).to(dtype) if bias else None
    expected = linear(rows.double(), weight.double(), None if added is None else added.double())
    out = widened(rows, weight, added)
    assert out.dtype is dtype
    assert out.shape == (WIDENED_BEYOND + 5, 120)
    assert torch.allclose(out.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [WIDENED_BEYOND + 1, WIDENED_BEYOND + 2, 255, 256, 700])
def test_a_rows_bits_are_its_own(dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(1000, 256, generator=generator).to(dtype)
    weight = torch.randn(192, 256, generator=generator).to(dtype)
    assert torch.equal(widened(rows[:count], weight), widened(rows, weight)[:count])
    assert torch.equal(widened(rows[None, :count], weight)[0], widened(rows[:count], weight))
