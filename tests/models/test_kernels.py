"""Our kernels beside torch's own functions, and a row's bits whatever stands beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from swarmnode import _native
from swarmnode.models.kernels import Linear, attend, have_kernels, room_of

pytestmark = pytest.mark.skipif(not _native.kernels_available(), reason="this CPU has no kernels of ours")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

SINGLE = 4e-6
"""How far two that sum in singles, in another order, may be from each other."""


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def noise(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    heads=st.tuples(st.integers(1, 3), st.integers(1, 6)),
    widths=st.tuples(st.sampled_from([8, 20, 64]), st.sampled_from([8, 20, 64])),
    sessions=st.lists(st.tuples(st.integers(1, 2), st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=4),
    seed=st.integers(0, 2**20),
)
def test_attention_is_torchs(
    dtype: torch.dtype,
    heads: tuple[int, int],
    widths: tuple[int, int],
    sessions: list[tuple[int, int, int]],
    seed: int,
) -> None:
    key_heads, group = heads
    tokens = sum(rows for rows, _, _ in sessions)
    # As stock code makes them: tokens first, then turned round.
    queries = noise(1, tokens, key_heads * group, widths[0], seed=seed, dtype=dtype).transpose(1, 2)
    keys = noise(1, tokens, key_heads, widths[0], seed=seed + 1, dtype=dtype).transpose(1, 2)
    values = noise(1, tokens, key_heads, widths[1], seed=seed + 2, dtype=dtype).transpose(1, 2)
    out = queries.new_empty(1, tokens, key_heads * group, widths[1])
    slabs, places, expected = [], [], []
    for number, (rows, before, unseen) in enumerate(sessions):
        first, offset = min(unseen, before), sum(rows for rows, _, _ in sessions[:number])
        slab = [noise(rows, key_heads, before + 2, width, seed=seed + 3 + number, dtype=dtype) for width in widths]
        own = [states[:, :, offset : offset + rows].transpose(0, 2) for states in (queries, keys, values)]
        seen = [
            torch.cat([held[:, :, first:before], new], 2).float().repeat_interleave(group, 1)
            for held, new in zip(slab, own[1:], strict=True)
        ]
        expected.append(scaled_dot_product_attention(own[0].float(), seen[0], seen[1]).transpose(0, 2))
        slabs.append(slab)
        places.append((offset, before, first))
    rooms = [room_of(*slab) for slab in slabs]
    attend((queries, keys, values), out, rooms, places, scale=None, threads=2)
    near = 2 * torch.finfo(dtype).eps + SINGLE
    torch.testing.assert_close(out.float(), torch.cat(expected, 2).transpose(1, 2), rtol=near, atol=near)
    for (rows, before, _), (offset, _, _), slab in zip(sessions, places, slabs, strict=True):
        for held, new in zip(slab, (keys, values), strict=True):
            assert torch.equal(held[:, :, before], new[0, :, offset : offset + rows].transpose(0, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_is_torchs_and_each_row_its_own(dtype: torch.dtype, bias: bool) -> None:
    rows, weights = noise(13, 200, seed=1, dtype=dtype), noise(90, 200, seed=2, dtype=dtype)
    added = noise(90, seed=3, dtype=dtype) if bias else None
    layer, out = Linear(weights, added), torch.zeros(13, 90, dtype=dtype)
    layer.apply(rows, out, [(0, 5), (6, 13)])
    expected = linear(rows.float(), weights.float(), None if added is None else added.float())
    near = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(out[6:].float(), expected[6:], rtol=near, atol=10 * SINGLE)
    assert not out[5].any()
    for row in (0, 4, 12):
        alone = torch.empty(1, 90, dtype=dtype)
        layer.apply(rows[row : row + 1], alone, [(0, 1)])
        assert torch.equal(alone[0], out[row])


def test_a_layer_knows_weights_that_moved() -> None:
    weights = noise(4, 4, seed=1, dtype=torch.float32)
    assert Linear(weights, None).is_of(weights, None)
    assert not Linear(weights, None).is_of(weights.clone(), None)
    assert not Linear(weights, None).is_of(weights, weights[0])


def test_other_tensors_are_left_to_torch() -> None:
    assert have_kernels(torch.zeros(1), torch.zeros(2))
    assert not have_kernels(torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16))
    assert not have_kernels(torch.zeros(1, dtype=torch.float64))
    assert not have_kernels(torch.zeros(1, device="meta"))


def test_what_is_no_tensor_of_theirs_is_refused() -> None:
    whole = torch.zeros(2, 3)
    for wrong in (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(1, 1, 1, 2, 3), torch.zeros(3, 2).t()):
        with pytest.raises(ValueError, match=r"not a tensor that the kernels take|do not fit"):
            _native.Linear(to_dlpack(wrong), None)
    layer = _native.Linear(to_dlpack(whole), None)
    rows, out = to_dlpack(torch.zeros(4, 3)), to_dlpack(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="do not fit"):
        layer.apply(rows, rows, [(0, 4)], 1)
    with pytest.raises(ValueError, match="do not fit"):
        layer.apply(rows, out, [(0, 5)], 1)
    with pytest.raises(TypeError):
        layer.apply(whole, out, [(0, 4)], 1)  # no capsule
