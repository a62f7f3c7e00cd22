"""Sessions that begin alike, on real blocks: what is not computed again has the bits of what would have been."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from trio.testing import wait_all_tasks_blocked

from support.pond import Pond, Server, Talk, held
from swarmnode.models import slabs
from swarmnode.models.slabs import LEAST_TOKENS
from swarmnode.models.span import Piece, RaggedCache, Span
from swarmnode.models.tiny import tiny_config
from swarmnode.models.tiny_checkpoint import tiny_checkpoint
from swarmnode.node.server.prefix import Chain, PrefixStatistics, cut
from swarmnode.node.server.prefix_rows import Prefixes

BLOCK = 32
ROOM = 1 << 30
FAMILIES = ("llama", "gpt_oss", "mixtral")
"""Plain; windows, sinks and experts; experts."""


@pytest.fixture(scope="module", params=FAMILIES)
def spans(request: pytest.FixtureRequest) -> Iterator[dict[torch.dtype, Span]]:
    torch.set_num_threads(1)
    with tiny_checkpoint(tiny_config(request.param)) as checkpoint:
        yield {dtype: checkpoint.span(0, 4, dtype) for dtype in (torch.float32, torch.bfloat16)}


def hidden(tokens: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(1, tokens, 64, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Session:
    """One session, given what others have left."""

    def __init__(self, span: Span, prefixes: Prefixes | None) -> None:
        self.span = span
        self.prefixes = prefixes
        self.cache = span.open_ragged_cache()
        self.chain = Chain(["tiny"], "us", 0, BLOCK)
        self.known_tokens = 0

    def step(self, states: torch.Tensor, position: int | None = None, *, wanted: int | None = None) -> torch.Tensor:
        """The last `wanted` outputs of a step, all by default."""
        tokens = states.shape[1]
        first_wanted = 0 if wanted is None else tokens - wanted
        at = self.cache.position if position is None else position
        piece = Piece(self.cache, states, at, cut(at, [tokens], BLOCK))
        self.span.check(piece)
        if self.prefixes is None:
            return self.span.run([piece], deterministic=True)[0][:, first_wanted:]
        begun = self.prefixes.begin(self.chain, piece, first_wanted)
        self.known_tokens += begun.known_tokens
        out = None if begun.rest is None else self.span.run([begun.rest], deterministic=True)[0]
        whole = self.prefixes.end(self.chain, begun, out)
        return whole[:, whole.shape[1] - (tokens - first_wanted) :]


def needed(cache: RaggedCache) -> list[torch.Tensor]:
    """All keys and values that a session needs, on however short a way back."""
    states: list[torch.Tensor] = []
    for slab in cache._slabs.values():
        first = 0 if slab.window is None else max(0, cache.position - slab.window + 1 - slabs.REWIND_TOKENS)
        states += slab.copy(first, cache.position)
    return states


def same(one: Session, other: Session) -> bool:
    """Whether two sessions hold the same, the first in no more memory."""
    return (
        one.cache.position == other.cache.position
        and one.cache.memory_bytes <= other.cache.memory_bytes
        and all(map(torch.equal, needed(one.cache), needed(other.cache)))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_found_has_the_bits_of_what_is_computed(spans: dict[torch.dtype, Span], dtype: torch.dtype) -> None:
    span = spans[dtype]
    prefixes = Prefixes(BLOCK, lambda: ROOM)
    begins, found = hidden(BLOCK, 1, dtype), 0
    for seed, tokens in ((2, 5), (3, 40), (3, 40), (4, BLOCK)):
        prompt = torch.cat([begins, hidden(tokens, seed, dtype)], dim=1)
        session, alone = Session(span, prefixes), Session(span, None)
        for states in (prompt, hidden(1, 9, dtype), hidden(3, 10, dtype), hidden(1, 11, dtype)):
            assert torch.equal(session.step(states), alone.step(states))
        assert same(session, alone)
        found += session.known_tokens
    assert found == prefixes.statistics().saved_tokens == 4 * BLOCK


@pytest.mark.parametrize("least", [LEAST_TOKENS, 4])
def test_what_has_left_a_window_is_known_as_well(
    spans: dict[torch.dtype, Span], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With small slabs a sliding block keeps less than a block of tokens."""
    monkeypatch.setattr(slabs, "LEAST_TOKENS", least)
    monkeypatch.setattr(slabs, "REWIND_TOKENS", least)
    prefixes = Prefixes(BLOCK, lambda: ROOM)
    span, prompt = spans[torch.float32], hidden(8 * BLOCK, 1)
    for tokens, known in ((8 * BLOCK, 0), (8 * BLOCK, 8), (5 * BLOCK + 3, 5), (7 * BLOCK, 7)):
        session, alone = Session(span, prefixes), Session(span, None)
        for states in (prompt[:, :tokens], hidden(1, 2), hidden(2 * BLOCK, 3)):
            assert torch.equal(session.step(states), alone.step(states))
            assert same(session, alone)
        assert session.known_tokens == known * BLOCK


def test_a_block_without_outputs_is_computed_for_who_wants_them(spans: dict[torch.dtype, Span]) -> None:
    prefixes = Prefixes(BLOCK, lambda: ROOM)
    span, prompt = spans[torch.float32], hidden(BLOCK + 7, 1)
    whole = Session(span, None).step(prompt)
    for wanted, known in ((1, 0), (0, BLOCK), (7, BLOCK), (8, 0), (None, BLOCK), (3, BLOCK)):
        session = Session(span, prefixes)
        out = session.step(prompt, wanted=wanted)
        assert torch.equal(out, whole if wanted is None else whole[:, BLOCK + 7 - wanted :])
        assert session.known_tokens == known


def test_what_a_session_overwrites_is_not_what_it_began_with(spans: dict[torch.dtype, Span]) -> None:
    prefixes = Prefixes(BLOCK, lambda: ROOM)
    span = spans[torch.float32]
    begins, other = hidden(2 * BLOCK, 1), hidden(BLOCK, 2)
    Session(span, prefixes).step(begins[:, :BLOCK])
    session, alone = Session(span, prefixes), Session(span, None)
    for states, position in (
        (begins, 0),
        (other, BLOCK),  # another second block
        (hidden(4, 3), 5),  # in the middle of the first block, which is whole no more
        (other, BLOCK - 20),
        (begins, 0),
    ):
        at = min(position, session.cache.position)
        assert torch.equal(session.step(states, at), alone.step(states, at))
        assert same(session, alone)


def test_without_room_nothing_is_kept_and_all_is_computed(spans: dict[torch.dtype, Span]) -> None:
    prefixes = Prefixes(BLOCK, lambda: 0)
    span, prompt = spans[torch.float32], hidden(BLOCK, 1)
    for _ in range(2):
        session = Session(span, prefixes)
        session.step(prompt)
        assert session.known_tokens == 0
    assert prefixes.statistics() == PrefixStatistics(misses=2)


async def measured(pond: Pond, **options: Any) -> Server:
    server = pond.serve(0, 4, segment_tokens=BLOCK, **options)
    await server.engine.measure()
    return server


async def asked(pond: Pond, server: Server, number: int, states: torch.Tensor, **options: Any) -> Talk:
    """A new session, by a peer of its own if none is given, that has sent these hidden states."""
    network = options.pop("network", None) or pond.network()
    message = pond.open_message(0, 4, session=bytes([number]) * 16, **options)
    talk = await pond.opened(network, server, message)
    await talk.step(0, states, 0)
    return talk


@pytest.mark.parametrize("deterministic", [False, True])
async def test_sessions_of_one_peer_share_what_they_begin_with(pond: Pond, deterministic: bool) -> None:
    server, network = await measured(pond, cache_tokens=10_000, deterministic=deterministic), pond.network()
    outs = []
    for number, tail in enumerate((9, 9, 2 * BLOCK)):
        prompt = torch.cat([pond.hidden(3 * BLOCK), pond.hidden(tail, seed=7)], dim=1)
        # Those before may live or not.
        talk = await asked(pond, server, number, prompt, network=network)
        outs.append([(await talk.output())[1]])
        await talk.step(1, pond.hidden(1, seed=8), prompt.shape[1])
        outs[-1].append((await talk.output())[1])
        if number == 0:
            await talk.close()
            await server.idle()
    assert all(map(torch.equal, outs[0], outs[1]))
    assert torch.equal(outs[0][0][:, : 3 * BLOCK], outs[2][0][:, : 3 * BLOCK])
    statistics = server.engine.prefix_statistics()
    assert (statistics.hits, statistics.misses, statistics.blocks) == (6, 5, 5)


@pytest.mark.parametrize(
    ("share", "public", "hits"), [(True, True, 3), (True, False, 0), (False, True, 0)], ids=["both", "server", "client"]
)
async def test_another_peer_shares_only_what_both_call_public(pond: Pond, share: bool, public: bool, hits: int) -> None:
    server = await measured(pond, cache_tokens=10_000, share_prefixes=share)
    prompt = pond.hidden(4 * BLOCK)
    for number in range(2):
        talk = await asked(pond, server, number, prompt, public_tokens=4 * BLOCK - 1 if public else 0)
        await talk.output()
    assert server.engine.prefix_statistics().hits == hits


async def test_a_server_may_share_nothing(pond: Pond) -> None:
    server, network = await measured(pond, cache_tokens=10_000, prefix_cache=False), pond.network()
    for number in range(2):
        await (await asked(pond, server, number, pond.hidden(3 * BLOCK), network=network)).output()
    assert server.engine.prefix_statistics() == PrefixStatistics()


async def test_what_sessions_need_is_not_kept_for_others(pond: Pond) -> None:
    server, network = await measured(pond, cache_tokens=400), pond.network()
    first = await asked(pond, server, 1, pond.hidden(4 * BLOCK), network=network)
    await first.output()
    kept = server.engine.prefix_statistics().held_bytes
    assert kept > 0
    assert server.engine.cache_tokens_left == 400 - server.engine.statistics().held
    second = await asked(pond, server, 2, pond.hidden(6 * BLOCK, seed=1), network=pond.network())
    await second.output()
    assert server.engine.prefix_statistics().held_bytes < kept
    await second.close()
    await first.close()
    await server.idle()
    # What was kept of the first one lost its end; its client computes that, and nothing wrong comes of it.
    again = await asked(pond, server, 3, pond.hidden(4 * BLOCK), network=network)
    assert torch.equal((await again.output())[1], *pond.run_cut(0, 4, BLOCK, pond.hidden(4 * BLOCK)))


async def test_who_shares_the_pass_changes_nothing(pond: Pond) -> None:
    """Prompts that wait together: one known as a whole, one in part, one not at all; then a token of each."""
    server, network = await measured(pond, cache_tokens=10_000, deterministic=True), pond.network()
    begins, token = pond.hidden(3 * BLOCK), pond.hidden(1, seed=3)
    await (await asked(pond, server, 9, begins, network=network)).output()
    prompts = [begins, torch.cat([begins[:, : 2 * BLOCK], pond.hidden(50, seed=1)], dim=1), pond.hidden(70, seed=2)]
    talks = [
        await pond.opened(network, server, pond.open_message(0, 4, session=bytes([number]) * 16)) for number in range(3)
    ]
    async with held(pond.torch_thread) as gate:
        for talk, prompt in zip(talks, prompts, strict=True):
            await talk.step(0, prompt, 0)
            await talk.step(1, token, prompt.shape[1])
        await wait_all_tasks_blocked()
        gate.set()
    for talk, prompt in zip(talks, prompts, strict=True):
        for out in pond.run_cut(0, 4, BLOCK, prompt, token):
            assert torch.equal((await talk.output())[1], out)
    assert server.engine.prefix_statistics().hits == 5
