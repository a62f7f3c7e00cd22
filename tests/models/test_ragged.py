"""Passes that sessions share: bit for bit what each gets alone, however they are mixed, cut, replayed and gone back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmnode._native import kernels_available
from swarmnode.errors import ProtocolViolation, ReplayNeeded
from swarmnode.models import packed, slabs
from swarmnode.models.span import Piece, RaggedCache, Span, SpanCache
from swarmnode.models.tiny import tiny_config
from swarmnode.models.tiny_checkpoint import tiny_checkpoint

WIDTH = 64
FAMILIES = ("llama", "gpt_oss", "gemma3_text")
"""Plain grouped queries; windows, sinks and experts; windows and other frequencies for each kind of block."""

DTYPES = (torch.float32, torch.bfloat16)
"""In float16 torch's products on a CPU do not always have the same bits for the same rows."""


@pytest.fixture(scope="module", autouse=True)
def _small_slabs() -> Iterator[None]:
    """Slabs so small that tiny sessions outgrow them and slide, and steps of five tokens that are long."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slabs, "LEAST_TOKENS", 4)
        patch.setattr(slabs, "REWIND_TOKENS", 5)
        patch.setattr(packed, "SHORT_STEP", 4)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def spans(request: pytest.FixtureRequest) -> Iterator[dict[torch.dtype, Span]]:
    with tiny_checkpoint(tiny_config(request.param)) as checkpoint:
        yield {dtype: checkpoint.span(0, 4, dtype) for dtype in DTYPES}


@pytest.fixture(scope="module")
def span() -> Iterator[Span]:
    with tiny_checkpoint(tiny_config("llama")) as checkpoint:
        yield checkpoint.span(0, 4)


@dataclass
class Session:
    """One session in company, itself alone, and the steps it remembers."""

    span: Span
    rows: int
    company: RaggedCache = field(init=False)
    alone: RaggedCache = field(init=False)
    steps: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.company, self.alone = self.span.open_ragged_cache(), self.span.open_ragged_cache()

    def next(self, lengths: list[int], back: int, generator: torch.Generator) -> tuple[Piece, torch.Tensor]:
        """A piece for the company, and what a session alone makes of the same steps."""
        kept = max(0, len(self.steps) - back)
        position = sum(hidden.shape[1] for hidden, _ in self.steps[:kept])
        assert self.company.can_truncate(position) == self.alone.can_truncate(position)
        if self.company.can_truncate(position):
            self.steps = self.steps[:kept]
        else:
            position = self.company.position
        hidden = torch.randn(self.rows, sum(lengths), WIDTH, generator=generator)
        piece = Piece(self.company, hidden, position, tuple(lengths))
        outs = []
        for step in torch.split(hidden, lengths, 1):
            outs.append(self.span.run([Piece(self.alone, step, position)], deterministic=True)[0])
            self.steps.append((step, outs[-1]))
            position += step.shape[1]
        return piece, torch.cat(outs, 1)


def same_state(one: RaggedCache, other: RaggedCache) -> bool:
    """Whether two states hold the same bits for all that is still to be seen."""
    if one.position != other.position:
        return False
    for mine, theirs in zip(one._slabs.values(), other._slabs.values(), strict=True):
        first = mine.first(one.position)
        for a, b in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
            assert a is not None
            assert b is not None
            held = (
                slice(first - mine.base, one.position - mine.base),
                slice(first - theirs.base, one.position - theirs.base),
            )
            if not torch.equal(a[:, :, held[0]], b[:, :, held[1]]):
                return False
    return True


steps = st.lists(st.integers(1, 9) | st.just(1), min_size=1, max_size=3)
turn = st.tuples(steps, st.integers(0, 2) | st.just(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.sampled_from([1, 1, 1, 2]), min_size=1, max_size=5),
    passes=st.lists(st.dictionaries(st.integers(0, 4), turn, min_size=1), min_size=1, max_size=6),
    seed=st.integers(0, 2**20),
)
def test_a_session_gets_the_same_bits_in_any_company(
    spans: dict[torch.dtype, Span],
    dtype: torch.dtype,
    rows: list[int],
    passes: list[dict[int, tuple[list[int], int]]],
    seed: int,
) -> None:
    span, generator = spans[dtype], torch.Generator().manual_seed(seed)
    sessions = [Session(span, each) for each in rows]
    for asked in passes:
        present = {number % len(sessions): what for number, what in asked.items()}
        given_out = [sessions[number].next(*what, generator) for number, what in present.items()]
        outs = span.run([piece for piece, _ in given_out], deterministic=True)
        for out, (_, expected) in zip(outs, given_out, strict=True):
            assert torch.equal(out, expected)
    started = [session for session in sessions if session.steps]
    again = [span.open_ragged_cache() for _ in started]
    replay = [
        Piece(
            cache, torch.cat([hidden for hidden, _ in session.steps], 1), 0, tuple(h.shape[1] for h, _ in session.steps)
        )
        for cache, session in zip(again, started, strict=True)
    ]
    for session, cache, out in zip(started, again, span.run(replay, deterministic=True), strict=True):
        assert torch.equal(out, torch.cat([out for _, out in session.steps], 1))
        assert same_state(cache, session.company)
        assert same_state(cache, session.alone)


def hidden(tokens: int, rows: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_a_session_with_passes_of_its_own_is_as_near_to_the_stock_model_as_rounding(
    spans: dict[torch.dtype, Span],
) -> None:
    for dtype, span in spans.items():
        ours, stock = span.open_session(), span.open_cache()
        assert isinstance(ours, RaggedCache)
        for tokens in (7, 1, 1, 5, 1, 1, 1):
            given_in = hidden(tokens, seed=stock.position)
            out, expected = span.step(ours, given_in, ours.position), span.step(stock, given_in, stock.position)
            assert (out - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.skipif(not kernels_available(), reason="this CPU has no kernels of ours")
def test_where_all_weights_are_linear_layers_a_lone_session_has_its_bits_anyway() -> None:
    with tiny_checkpoint(tiny_config("llama", head_dim=64, intermediate_size=128)) as checkpoint:
        span = checkpoint.span(0, 4)
    lone, company, other = (span.open_session() for _ in range(3))
    for tokens in (8, 1, 3, 1, 1):
        given_in = hidden(tokens, seed=lone.position)
        out = span.run([Piece(lone, given_in, lone.position)])[0]
        pieces = [Piece(other, hidden(2, seed=5), other.position), Piece(company, given_in, company.position)]
        assert torch.equal(out, span.run(pieces)[1])


def test_what_a_session_takes_is_known_beforehand(spans: dict[torch.dtype, Span]) -> None:
    for dtype, span in spans.items():
        assert span.token_bytes == 4 * 2 * 2 * 16 * dtype.itemsize
        cache = span.open_session()
        for tokens in (3, 1, 30, 1, 1):
            span.step(cache, hidden(tokens), cache.position)
            assert span.token_bytes < cache.memory_bytes <= span.cache_bytes(cache.position)
        assert span.cache_bytes(0) == 0


def test_without_windows_the_foretold_memory_is_exact(span: Span) -> None:
    cache = span.open_session()
    for tokens in (3, 1, 30, 1, 1):
        span.step(cache, hidden(tokens), cache.position)
        assert cache.memory_bytes == span.cache_bytes(cache.position)


def test_drafted_tokens_are_checked_in_one_pass_as_if_they_came_singly(span: Span) -> None:
    at_once, singly = span.open_session(), span.open_session()
    for cache in (at_once, singly):
        span.run([Piece(cache, hidden(6), 0)], deterministic=True)
    drafted = hidden(5, seed=2)
    together = span.run([Piece(at_once, drafted, 6, (1,) * 5)], deterministic=True)[0]
    for token in range(5):
        out = span.run([Piece(singly, drafted[:, token : token + 1], 6 + token)], deterministic=True)[0]
        assert torch.equal(together[:, token : token + 1], out)


def test_stock_and_ragged_states_go_into_one_call(span: Span) -> None:
    stock, ragged = span.open_cache(), span.open_ragged_cache()
    outs = span.run([Piece(stock, hidden(5), 0, (3, 2)), Piece(ragged, hidden(5), 0, (3, 2))])
    alone = span.open_cache()
    steps = [span.step(alone, hidden(5)[:, :3], 0), span.step(alone, hidden(5)[:, 3:], 3)]
    assert torch.equal(outs[0], torch.cat(steps, 1))
    assert (outs[0] - outs[1]).abs().max() < 1e-4
    assert (stock.position, ragged.position) == (5, 5)


def test_one_bad_piece_changes_nothing_for_anyone(span: Span) -> None:
    good, bad = span.open_session(), span.open_session()
    span.run([Piece(cache, hidden(4), 0) for cache in (good, bad)])
    for piece, refused in (
        (Piece(bad, hidden(1), 5), "position 5, but blocks 0:4 have seen 4"),
        (Piece(bad, hidden(3), 4, (1, 1)), "Steps of 1, 1 tokens do not make up the 3"),
        (Piece(bad, hidden(3), 4, (3, 0)), "Steps of 3, 0 tokens"),
        (Piece(bad, hidden(1, rows=2), 4), "2 rows came to a session of 1"),
        (Piece(bad, torch.zeros(1, 1, WIDTH + 1), 4), "has shape"),
    ):
        with pytest.raises(ProtocolViolation, match=refused):
            span.run([Piece(good, hidden(1), 2), piece])
        assert (good.position, bad.position) == (4, 4)
    with pytest.raises(ValueError, match="one piece"):
        span.run([Piece(good, hidden(1), 4), Piece(good, hidden(1), 4)])


def test_a_pass_that_breaks_can_be_asked_for_again(span: Span, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = [span.open_session() for _ in range(2)]
    span.run([Piece(cache, hidden(3), 0) for cache in caches])
    pieces = [Piece(cache, hidden(1, seed=3), 3) for cache in caches]

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(span.model.model.layers[2].mlp, "forward", fail)
    with pytest.raises(MemoryError):
        span.run(pieces)
    monkeypatch.undo()
    assert [cache.spoiled for cache in caches] == [False, False]
    fresh = [span.open_session() for _ in range(2)]
    span.run([Piece(cache, hidden(3), 0) for cache in fresh])
    expected = span.run([Piece(cache, hidden(1, seed=3), 3) for cache in fresh])
    assert all(map(torch.equal, span.run(pieces), expected))


def test_a_window_goes_back_a_little_and_then_no_further() -> None:
    with tiny_checkpoint(tiny_config("mistral")) as checkpoint:
        span = checkpoint.span(0, 4)
    cache = span.open_session()
    for tokens in (40, *[1] * 40):
        span.step(cache, hidden(tokens), cache.position)
    span.step(cache, hidden(1), cache.position - slabs.REWIND_TOKENS)
    with pytest.raises(ReplayNeeded):
        span.step(cache, hidden(1), 40)
    span.step(cache, hidden(1), 0)
    assert cache.position == 1


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("mamba", {}, "does not go through transformers' attention interface"),
        ("qwen3_5_text", {}, "keeps more than keys and values"),
        (
            "phi3",
            {
                "rope_parameters": {
                    **{"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
                    "original_max_position_embeddings": 8,
                },
                "original_max_position_embeddings": 8,
            },
            "`rope_type` is longrope",
        ),
    ],
)
def test_what_cannot_share_runs_by_itself_and_says_why(family: str, changes: dict[str, object], reason: str) -> None:
    with tiny_checkpoint(tiny_config(family, **changes)) as checkpoint:
        span = checkpoint.span(0, 4)
    assert not span.ragged
    assert reason in span.why_not_ragged
    caches = [span.open_session() for _ in range(2)]
    assert all(isinstance(cache, SpanCache) for cache in caches)
    outs = span.run([Piece(cache, hidden(5), 0, (3, 2)) for cache in caches], deterministic=True)
    assert torch.equal(*outs)
    assert [cache.position for cache in caches] == [5, 5]
    assert caches[0].memory_bytes <= span.cache_bytes(5)
