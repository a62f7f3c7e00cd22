"""The gate of a private swarm over real connections: who holds the key comes in; with others both sides say why not."""

from __future__ import annotations

import gc
import logging
import warnings
from contextlib import AsyncExitStack

import pytest
import trio
from multiaddr import Multiaddr

from support.gated import (
    ECHO,
    EVERYTHING,
    HANG_SECONDS,
    IDENTIFY,
    KEY,
    NO_KEY,
    OTHER_KEY,
    PLAIN,
    WANTED,
    WRONG_KEY,
    Indulgent,
    ask,
    is_alone,
    line,
    lines,
    node,
    said,
    two,
)
from support.hearing import hearing
from support.loopback import CARRIERS, CARRIERS_AND_FAMILIES, QUIC
from swarmnode.errors import PeerFault, PeerRefused, PeerUnreachable
from swarmnode.node.identity import create_identity
from swarmnode.node.joining import join_swarm
from swarmnode.node.net import gate as gate_file
from swarmnode.node.net.gate import Gate
from swarmnode.node.net.guests import Guests
from swarmnode.node.net.p2p import ID, new_host
from swarmnode.node.net.reaching import ReachingNetwork
from swarmnode.protocols.ids import RECORDS, SESSION
from swarmnode.protocols.swarm_key import SwarmKey

over_each = pytest.mark.parametrize("listen", CARRIERS)
over_all = pytest.mark.parametrize("listen", CARRIERS_AND_FAMILIES)


@over_all
async def test_who_holds_the_key_comes_in(listen: str) -> None:
    async with two(listen, KEY, SwarmKey(KEY.secret)) as (one, other), node(listen, KEY) as third:
        assert await one.connect(other.addrs[0]) == other.peer
        assert await ask(one, other.peer, b"there") == b"there"
        assert await ask(other, one.peer, b"and back") == b"and back"
        await third.connect(other.addrs[0])
        found = await third.closest_peers(bytes(32), 3)
        assert {each.peer for each in found} == {one.peer, other.peer, third.peer}


@over_all
@pytest.mark.parametrize(
    ("dialler", "listener", "ours", "theirs"),
    [
        (None, KEY, WANTED, NO_KEY),
        (KEY, None, NO_KEY, WANTED),
        (OTHER_KEY, KEY, WRONG_KEY, WRONG_KEY),
    ],
    ids=["dialler without", "listener without", "another"],
)
async def test_who_does_not_stays_out_and_both_say_why_once(  # noqa: PLR0917 - what pytest fills in
    listen: str,
    dialler: SwarmKey | None,
    listener: SwarmKey | None,
    ours: str,
    theirs: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two(listen, dialler, listener) as (one, other):
        for _ in range(3):
            with pytest.raises(PeerRefused, match=ours) as refused:
                await one.connect(other.addrs[0])
            assert refused.value.peer == other.peer
            assert "--swarm-key" in refused.value.hint
            with pytest.raises(PeerFault):
                await ask(one, other.peer, b"let me in", other.addrs)
            assert await is_alone(one)
            assert await is_alone(other)
        both = (line(other.peer, ours), line(one.peer, theirs))
        assert await said(caplog, *both) == sorted(both)


@over_each
async def test_joining_without_the_key_is_one_clear_sentence(listen: str) -> None:
    async with two(listen, None, KEY) as (one, other):
        with pytest.raises(PeerRefused, match="private swarm") as refused:
            await join_swarm(one, other.addrs)
        assert refused.value.exit_code != 0


@over_each
@pytest.mark.parametrize("dials", ["we", "they"])
async def test_a_stock_libp2p_host_has_nothing_of_a_private_swarm(
    listen: str, dials: str, caplog: pytest.LogCaptureFixture
) -> None:
    stock = new_host(enable_quic=listen == QUIC)
    async with node(listen, KEY) as member, stock.run([Multiaddr(listen)]):
        if dials == "we":
            with pytest.raises(PeerRefused, match=PLAIN):
                await member.connect(str(stock.get_addrs()[0]))
        else:
            ours = ID.from_base58(member.peer)
            stock.get_peerstore().add_addr(ours, Multiaddr(member.addrs[0].partition("/p2p/")[0]), 60)
            with pytest.raises(Exception):  # noqa: B017, PT011 - whatever py-libp2p makes of being refused
                await stock.new_stream(ours, EVERYTHING)
        assert await is_alone(member)
        plain = line(stock.get_id().to_base58(), PLAIN)
        assert await said(caplog, plain) == [plain]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()  # it leaves its UDP socket to be collected


@over_each
@pytest.mark.parametrize("hidden", ["member", "stranger"])
@pytest.mark.parametrize(
    ("key", "ours", "theirs"), [(None, NO_KEY, WANTED), (OTHER_KEY, WRONG_KEY, WRONG_KEY)], ids=["no key", "another"]
)
async def test_a_relay_brings_nobody_past_the_gate(  # noqa: PLR0917 - what pytest fills in
    listen: str, hidden: str, key: SwarmKey | None, ours: str, theirs: str, caplog: pytest.LogCaptureFixture
) -> None:
    relay_id, member_id, stranger_id = (create_identity() for _ in range(3))
    relay_gate = Indulgent(relay_id.peer, KEY, {stranger_id.peer})
    stranger_gate = Indulgent(stranger_id.peer, key, {relay_id.peer})
    async with (
        node(listen, relay_gate, relay_id, relays=True) as relay,
        node(None if hidden == "member" else listen, KEY, member_id) as member,
        node(None if hidden == "stranger" else listen, stranger_gate, stranger_id) as stranger,
        node(listen, KEY) as friend,
    ):
        there, dialler = (member, stranger) if hidden == "member" else (stranger, member)
        assert isinstance(there, ReachingNetwork)
        await there.connect(relay.addrs[0])
        await there.keeper.reservations.check()
        there.announce(there.keeper.reservations.addrs)
        assert there.is_relayed
        for protocol in (ECHO, IDENTIFY, RECORDS, SESSION):
            with pytest.raises(PeerFault):
                await dialler.open_stream(there.peer, protocol, there.addrs)
            assert await is_alone(there, (relay.peer,))
            assert await is_alone(dialler, (relay.peer,))
        both = (line(stranger.peer, ours), line(member.peer, theirs))
        assert await said(caplog, *both) == sorted(both)
        if hidden == "member":
            assert await ask(friend, member.peer, b"let me in", member.addrs) == b"let me in"
            assert set(member.connected) == {relay.peer, friend.peer}


@over_each
@pytest.mark.parametrize("dials", ["the one with the list", "the one on it"])
async def test_lists_hold_in_both_directions(listen: str, dials: str) -> None:
    host_id, friend_id, foe_id = (create_identity() for _ in range(3))
    host_gate = Gate(host_id.peer, guests=Guests(frozenset({friend_id.peer, foe_id.peer}), frozenset({foe_id.peer})))
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(node(listen, host_gate, host_id))
        friend = await stack.enter_async_context(node(listen, None, friend_id))
        foe = await stack.enter_async_context(node(listen, None, foe_id))
        unknown = await stack.enter_async_context(node(listen, None))
        for guest in (foe, unknown):
            one, other = (host, guest) if dials == "the one with the list" else (guest, host)
            with pytest.raises((PeerRefused, PeerUnreachable)):
                await one.connect(other.addrs[0])
            with pytest.raises(PeerFault):
                await ask(one, other.peer, b"?", other.addrs)
            assert await is_alone(host)
        one, other = (host, friend) if dials == "the one with the list" else (friend, host)
        await one.connect(other.addrs[0])
        assert await ask(one, other.peer, b"!") == b"!"


def test_the_rule_of_the_lists() -> None:
    assert Guests().why_not("anybody") is None
    assert Guests(denied=frozenset({"a"})).why_not("a")
    assert Guests(denied=frozenset({"a"})).why_not("b") is None
    assert Guests(frozenset({"a"})).why_not("a") is None
    assert Guests(frozenset({"a"})).why_not("b")
    assert Guests(frozenset()).why_not("a")
    assert Guests(frozenset({"a"}), frozenset({"a"})).why_not("a")


@over_each
async def test_a_dial_back_is_no_news_in_a_private_swarm(listen: str) -> None:
    async with two(listen, KEY, KEY) as (one, other):
        assert isinstance(one, ReachingNetwork)
        await one.connect(other.addrs[0])
        with hearing() as heard, trio.fail_after(HANG_SECONDS):
            await one.keeper.autonat.ask()
            assert one.keeper.autonat.reach == "open"
            await heard.line_with("it closed the connection instead")
        assert heard.said(logging.WARNING) == []


async def test_the_log_is_not_for_strangers_to_fill(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(create_identity().peer, KEY, Guests(allowed=frozenset()))
    for number in range(200):
        for _ in range(2):
            with pytest.raises(PeerRefused):
                gate.check(f"peer {number}")
    assert len(lines(caplog)) == gate_file.MAX_SAID
