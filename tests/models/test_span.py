"""Spans: what they refuse, what they forget, and that sessions and parts of a span do not disturb each other."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from swarmnode.errors import BadRange, ProtocolViolation, ReplayNeeded
from swarmnode.models.span import Span
from swarmnode.models.tiny import WINDOW, tiny_config
from swarmnode.models.tiny_checkpoint import TinyCheckpoint, tiny_checkpoint

WIDTH = 64


@pytest.fixture(scope="module")
def llama() -> Iterator[TinyCheckpoint]:
    torch.set_num_threads(1)
    with tiny_checkpoint(tiny_config("llama")) as checkpoint:
        yield checkpoint


@pytest.fixture(scope="module")
def span(llama: TinyCheckpoint) -> Span:
    return llama.span(1, 3)


def hidden(tokens: int, rows: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_it_knows_itself(span: Span) -> None:
    assert (span.start, span.end, span.num_blocks, span.hidden_size) == (1, 3, 4, WIDTH)
    assert (span.dtype, span.device.type, span.truncatable) == (torch.float32, "cpu", True)
    held = sum(weight.nbytes for weight in span.model.parameters())
    assert 0 < held <= span.weight_bytes


def test_it_holds_a_half_of_the_blocks_and_nothing_of_the_ends(span: Span) -> None:
    names = {name for name, _ in span.model.named_parameters()}
    assert names
    assert all(name.startswith(("model.layers.1.", "model.layers.2.")) for name in names)


def test_a_step_beyond_the_tokens_seen_is_refused(span: Span) -> None:
    cache = span.open_cache()
    span.step(cache, hidden(3), 0)
    with pytest.raises(ProtocolViolation, match="position 5, but blocks 1:3 have seen 3 tokens") as refused:
        span.step(cache, hidden(1), 5)
    assert refused.value.span == (1, 3)
    assert cache.position == 3


@pytest.mark.parametrize("position", [-1, -3])
def test_a_negative_position_is_refused(span: Span, position: int) -> None:
    with pytest.raises(ProtocolViolation):
        span.step(span.open_cache(), hidden(1), position)


@pytest.mark.parametrize("shape", [(1, WIDTH), (1, 2, WIDTH + 1), (1, 0, WIDTH), (0, 1, WIDTH), (1, 1, 1, WIDTH)])
def test_another_shape_is_refused(span: Span, shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolViolation, match="has shape"):
        span.step(span.open_cache(), torch.zeros(shape), 0)


def test_any_float_type_comes_in_and_the_spans_own_goes_out(span: Span) -> None:
    out = span.step(span.open_cache(), hidden(3).to(torch.bfloat16), 0)
    assert (out.dtype, out.shape) == (torch.float32, (1, 3, WIDTH))
    assert out.is_contiguous()


def test_a_step_behind_truncates(span: Span) -> None:
    cache = span.open_cache()
    span.step(cache, hidden(5), 0)
    span.step(cache, hidden(2, seed=2), 5)
    again = span.step(cache, hidden(2, seed=3), 5)
    assert cache.position == 7
    fresh = span.open_cache()
    span.step(fresh, hidden(5), 0)
    assert torch.equal(again, span.step(fresh, hidden(2, seed=3), 5))


def test_position_zero_starts_over(span: Span) -> None:
    cache = span.open_cache()
    first = span.step(cache, hidden(4), 0)
    span.step(cache, hidden(1), 4)
    assert torch.equal(span.step(cache, hidden(4), 0), first)
    assert cache.position == 4


def test_memory_grows_with_the_tokens_and_goes_with_the_cache(span: Span) -> None:
    cache = span.open_cache()
    assert cache.memory_bytes == 0
    span.step(cache, hidden(4), 0)
    for_four = cache.memory_bytes
    two_blocks_keys_and_values = 2 * 2 * 4 * 2 * 16 * 4
    assert for_four == two_blocks_keys_and_values
    span.step(cache, hidden(4, seed=2), 4)
    assert cache.memory_bytes == 2 * for_four
    keys = weakref.ref(cache.ready().layers[1].keys)
    del cache
    gc.collect()
    assert keys() is None


def test_nothing_of_a_step_stays_behind(span: Span) -> None:
    given = hidden(3)
    out = span.step(span.open_cache(), given, 0)
    gone = weakref.ref(given), weakref.ref(out)
    del given, out
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_a_step_that_breaks_in_the_middle_is_not_built_upon(span: Span, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = span.open_cache()
    span.step(cache, hidden(3), 0)
    block = span.model.model.layers[2]

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(block.mlp, "forward", fail)
    with pytest.raises(MemoryError):
        span.step(cache, hidden(1), 3)
    monkeypatch.undo()
    with pytest.raises(ReplayNeeded):
        span.step(cache, hidden(1), 3)
    assert span.step(cache, hidden(3), 0).shape == (1, 3, WIDTH)
    assert span.step(cache, hidden(1), 3).shape == (1, 1, WIDTH)


def test_a_part_of_a_span_is_the_same_blocks(llama: TinyCheckpoint, span: Span) -> None:
    part = span.part(2, 3)
    alone = llama.span(2, 3)
    assert (part.start, part.end, part.weight_bytes) == (2, 3, alone.weight_bytes)
    mine, theirs, beside = part.open_cache(), alone.open_cache(), span.open_cache()
    for position, tokens in ((0, 4), (4, 1), (5, 2)):
        span.step(beside, hidden(tokens, seed=9), position)
        given = hidden(tokens, seed=position)
        assert torch.equal(part.step(mine, given, position), alone.step(theirs, given, position))


def test_a_part_is_remembered_so_that_its_sessions_can_share_passes(
    span: Span, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert span.part(1, 3) is span
    assert span.part(1, 2) is span.part(1, 2)
    monkeypatch.setattr("swarmnode.models.span.MAX_PARTS", 1)
    gone = weakref.ref(span.part(1, 2))
    span.part(2, 3)
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("bounds", [(0, 2), (2, 4), (2, 2), (3, 1)])
def test_a_part_outside_the_span_is_refused(span: Span, bounds: tuple[int, int]) -> None:
    with pytest.raises(BadRange, match="not among the blocks 1:3"):
        span.part(*bounds)


def test_a_window_goes_back_until_something_left_it() -> None:
    with tiny_checkpoint(tiny_config("mistral")) as checkpoint:
        span = checkpoint.span(0, 4)
        cache = span.open_cache()
        span.step(cache, hidden(WINDOW - 2), 0)
        span.step(cache, hidden(1), WINDOW - 2)
        span.step(cache, hidden(1), 2)
        span.step(cache, hidden(WINDOW), 3)
        with pytest.raises(ReplayNeeded, match=f"cannot go back from position {WINDOW + 3} to 4") as refused:
            span.step(cache, hidden(1), 4)
        assert "position 0" in refused.value.hint
        assert cache.position == WINDOW + 3
        span.step(cache, hidden(1), WINDOW + 3)
        span.step(cache, hidden(2), 0)
        assert cache.position == 2


def test_a_recurrent_state_cannot_go_back_but_go_on() -> None:
    with tiny_checkpoint(tiny_config("mamba")) as checkpoint:
        span = checkpoint.span(1, 3)
        assert not span.truncatable
        cache = span.open_cache()
        span.step(cache, hidden(4), 0)
        with pytest.raises(ReplayNeeded):
            span.step(cache, hidden(1), 3)
        assert span.step(cache, hidden(3), 4).shape == (1, 3, WIDTH)
        assert cache.position == 7


def test_only_the_spans_own_blocks_decide_whether_it_goes_back() -> None:
    with tiny_checkpoint(tiny_config("qwen3_5_text")) as checkpoint:
        kinds = checkpoint.config.layer_types
        for block, kind in enumerate(kinds):
            assert checkpoint.span(block, block + 1).truncatable == (kind == "full_attention")
        assert set(kinds) == {"linear_attention", "full_attention"}


@pytest.mark.parametrize("family", ["llama", "qwen3_5_text", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_and_near(family: str, dtype: torch.dtype) -> None:
    with tiny_checkpoint(tiny_config(family)) as checkpoint:
        span, exact = checkpoint.span(0, 4, dtype), checkpoint.span(0, 4)
        assert span.dtype == dtype
        cache = span.open_cache()
        out = span.step(cache, hidden(5), 0)
        assert out.dtype == dtype
        close = exact.step(exact.open_cache(), hidden(5), 0)
        assert (out.float() - close).abs().max() < 0.1 * close.abs().max()
        assert span.step(cache, hidden(1), 5).dtype == dtype
