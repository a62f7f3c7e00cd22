"""DCUtR's talk and its roles: who sends what when, how often, and what nobody can make us do."""

from __future__ import annotations

import pytest
import trio
import trio.abc

from support.grounds import FakeGround, World
from swarmnode.errors import PeerFault
from swarmnode.node.net.nat.keeper import Keeper
from swarmnode.node.net.nat.messages import DCUTR, Kind, Punch, receive_punch, send_punch
from swarmnode.node.net.nat.punching import ATTEMPT_SECONDS, ATTEMPTS, MAX_HALF_TRIP_SECONDS, Puncher
from swarmnode.node.net.network import Stream

CROSSING = 0.1
LEADER = "/ip4/203.0.113.10/udp/4001/quic-v1"
FOLLOWER = "/ip4/203.0.113.20/udp/4001/quic-v1"


def two(world: World) -> tuple[FakeGround, Puncher, FakeGround, Puncher]:
    """A leader and a follower, connected through a relay, each seen somewhere."""
    leader, follower = world.ground("/ip4/10.0.1.2/tcp/1"), world.ground("/ip4/10.0.2.2/tcp/1")
    leader.seen["somebody"], follower.seen["somebody"] = LEADER, FOLLOWER
    world.connect(leader, follower, direct=False)
    leads, follows = Puncher(leader), Puncher(follower)
    leads.open()
    follows.open()
    return leader, leads, follower, follows


async def test_both_begin_at_the_same_moment_and_the_follower_dials(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, CROSSING)
        leader, leads, follower, _ = two(world)
        world.dialable[LEADER] = leader.peer
        assert await leads.lead(follower.peer) == "direct"
        ((dialled, dialled_at),) = follower.dialled
        ((punched, punched_at),) = leader.punched
        assert (dialled, punched) == (LEADER, FOLLOWER)
        assert dialled_at == pytest.approx(punched_at, abs=CROSSING / 10)
        assert not leader.dialled, "two dials would make two connections"
        assert not follower.punched


async def test_three_attempts_and_then_it_stays_on_the_relay(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, CROSSING)
        leader, leads, follower, _ = two(world)
        begun = trio.current_time()
        assert await leads.lead(follower.peer) == "failed"
        assert len(follower.dialled) == len(leader.punched) == ATTEMPTS
        assert trio.current_time() - begun < ATTEMPTS * (ATTEMPT_SECONDS + 1)
        assert leader.relayed(follower.peer)


async def test_who_is_seen_nowhere_or_does_not_punch_is_left_on_the_relay(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, CROSSING)
        leader, leads, follower, _ = two(world)
        for seen in ("/ip4/203.0.113.20/tcp/999", "/ip4/192.168.1.1/udp/1/quic-v1"):
            follower.seen["somebody"] = seen
            assert await leads.lead(follower.peer) == "no address"
        del follower.handlers[DCUTR]
        assert await leads.lead(follower.peer) == "refused"
        leader.seen.clear()
        assert not leader.punched


@pytest.mark.parametrize(
    "answers",
    [
        [Punch(Kind.SYNC)],
        [],
        [Punch(Kind.CONNECT, tuple(f"/ip4/203.0.113.{n}/udp/1/quic-v1" for n in range(16)))],
    ],
)
async def test_a_follower_that_breaks_the_rules_costs_little(
    answers: list[Punch], autojump_clock: trio.abc.Clock
) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, CROSSING)
        leader, leads, follower, _ = two(world)

        async def answer(stream: Stream) -> None:
            await receive_punch(stream)
            for each in answers:
                await send_punch(stream, each)

        follower.handle(DCUTR, answer)
        assert await leads.lead(follower.peer) in ("refused", "failed")
        assert len(leader.punched) <= 3


async def test_a_slow_answer_does_not_make_the_leader_wait_for_ever(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, CROSSING)
        leader, leads, follower, _ = two(world)
        synced_at: list[float] = []

        async def answer(stream: Stream) -> None:
            await receive_punch(stream)
            await trio.sleep(9)
            await send_punch(stream, Punch(Kind.CONNECT, (FOLLOWER,)))
            await receive_punch(stream)
            synced_at.append(trio.current_time())

        follower.handle(DCUTR, answer)
        await leads.lead(follower.peer)
        ((_, punched_at),) = leader.punched
        assert punched_at - synced_at[0] <= MAX_HALF_TRIP_SECONDS


async def test_nobody_but_a_relayed_peer_leads_us(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, CROSSING)
        leader, _, follower, _ = two(world)
        world.connect(leader, follower, direct=True)
        stream = await leader.open_stream(follower.peer, DCUTR)
        with pytest.raises(PeerFault):
            await receive_punch(stream)
        assert not follower.dialled


async def test_who_says_it_has_a_public_address_is_dialled_there_first(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, CROSSING)
        public = "/ip4/198.51.100.7/udp/4001/quic-v1"
        server, client = world.ground("/ip4/10.0.0.2/udp/1/quic-v1"), world.ground("/ip4/10.0.9.9/tcp/1", public)
        keeper = Keeper(server, relays=False)
        world.connect(server, client, direct=False)
        world.dialable[public] = client.peer
        await keeper.came_through(client.peer, "the relay")
        assert [addr for addr, _ in server.dialled] == [public]
        assert not server.relayed(client.peer)
