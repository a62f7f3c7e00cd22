"""Blocks of one part on several devices, or offloaded: the same bits, and nothing computed in the wrong place.

No GPU is needed: fake tensors know which device they are on, and refuse to be combined with those of another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swarmnode.models.cut import Part, num_blocks
from swarmnode.models.devices import Placement, settle
from swarmnode.models.span import Piece, Span
from swarmnode.models.tiny import tiny_config
from swarmnode.models.tiny_checkpoint import tiny_checkpoint

FAMILIES = (
    "bloom",
    "deepseek_v32",
    "exaone4",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "granitemoehybrid",
    "kimi_linear",
    "llama",
    "llama4_text",
    "lfm2",
    "mistral",
    "mpt",
    "opt",
    "phi3",
    "qwen3",
    "qwen3_next",
)
MOE = {"granitemoehybrid", "kimi_linear", "llama4_text", "qwen3_next", "deepseek_v32"}
"""Their experts are counted in shared passes, which fake tensors cannot be."""

TOKENS = (5, 1)


@pytest.fixture
def fake_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Where `cuda:0` and `cuda:1` are there, as it were."""
    real = torch.tensor

    def tensor(data: Any, *, dtype: torch.dtype | None = None, device: object = None, **more: Any) -> torch.Tensor:
        # A constant would be brought to the device really.
        made = real(data, dtype=dtype, **more)
        return torch.empty(made.shape, dtype=made.dtype, device=cast(torch.device, device))

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (8, 0))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def _fake(model: nn.Module, mode: FakeTensorMode) -> None:
    for module in model.modules():
        for slots in (module._parameters, module._buffers):
            for name, tensor in slots.items():
                if tensor is not None:
                    fake = mode.from_tensor(tensor.detach())
                    is_parameter = isinstance(tensor, nn.Parameter)
                    slots[name] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake  # type: ignore[assignment]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_block_finds_all_that_it_needs_on_its_own_device(family: str, request: pytest.FixtureRequest) -> None:
    with tiny_checkpoint(tiny_config(family)) as checkpoint:
        blocks = num_blocks(checkpoint.config)
        model = checkpoint.part(Part("span", 0, blocks))
    mode: FakeTensorMode = request.getfixturevalue("fake_devices")
    _fake(model, mode)
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    devices = (first,) * (blocks // 2) + (second,) * (blocks - blocks // 2)
    settle(model, Placement(devices, frozenset({1, blocks - 1})))
    span = Span(model)
    assert span.device == first
    caches = [[span.open_cache()]]
    if family not in MOE and span.ragged:
        caches.append([span.open_ragged_cache(), span.open_ragged_cache()])  # type: ignore[list-item]
    for together in caches:
        position = 0
        for tokens in TOKENS:
            hidden = torch.randn(1, tokens, span.hidden_size)
            outs = span.run([Piece(cache, hidden, position) for cache in together])
            assert {out.device for out in outs} == {second}
            assert {out.shape for out in outs} == {hidden.shape}
            position += tokens


def test_without_its_hooks_a_split_model_is_caught_by_the_same_means(fake_devices: FakeTensorMode) -> None:
    linear = nn.Linear(4, 4)
    _fake(linear, fake_devices)
    with pytest.raises(RuntimeError, match="same device"):
        linear(torch.randn(2, 4, device="cuda:1"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "mamba2"])
def test_offloaded_blocks_compute_the_same_bits_and_leave_their_weights_where_they_were(family: str) -> None:
    with tiny_checkpoint(tiny_config(family)) as checkpoint:
        blocks = num_blocks(checkpoint.config)
        plain = checkpoint.span(0, blocks)
        model = checkpoint.part(Part("span", 0, blocks))
    at_home = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    settle(model, Placement((torch.device("cpu"),) * blocks, frozenset(range(1, blocks))))
    span = Span(model)
    ours, theirs = span.open_session(), plain.open_session()
    torch.manual_seed(5)
    position = 0
    for tokens in TOKENS:
        hidden = torch.randn(1, tokens, span.hidden_size)
        assert torch.equal(span.step(ours, hidden, position), plain.step(theirs, hidden, position))
        position += tokens
    offloaded = {name for name in at_home if ".0." not in name}
    assert offloaded
    assert all(model.get_parameter(name).data_ptr() == at_home[name] for name in offloaded)


def test_a_block_that_fails_gives_its_weights_back() -> None:
    with tiny_checkpoint(tiny_config("llama")) as checkpoint:
        model = checkpoint.part(Part("span", 0, 2))
    at_home = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    settle(model, Placement((torch.device("cpu"),) * 2, frozenset({0, 1})))
    span = Span(model)

    def fail(*_: object) -> None:
        raise RuntimeError("as if the device had gone")

    broken = model.get_submodule(model.swarmnode_layout.blocks)[1].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="gone"):
        span.step(span.open_cache(), torch.randn(1, 1, span.hidden_size), 0)
    broken.remove()
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == at_home
