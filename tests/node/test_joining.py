"""Getting into a swarm: one door that opens is enough, none is an error, and who is alone tries again."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from swarmnode.errors import BadInput, NoPeers
from swarmnode.node.defaults import JOIN_SECONDS, NEIGHBOUR_SECONDS, REJOIN_SECONDS
from swarmnode.node.joining import join_swarm, stay_joined, wait_for_neighbours
from swarmnode.node.net.memory import open_memory_net


async def test_one_that_answers_is_enough(autojump_clock: Any) -> None:
    async with open_memory_net() as net:
        us, alive, dead, silent = (net.network(number) for number in range(4))
        net.kill(dead.peer)
        net.blackhole(silent.peer)
        began = trio.current_time()
        await join_swarm(us, [*dead.addrs, *silent.addrs, *alive.addrs])
        assert us.connected == (alive.peer,)
        assert trio.current_time() - began <= NEIGHBOUR_SECONDS


async def test_none_that_answers_is_named_in_time(autojump_clock: Any) -> None:
    async with open_memory_net() as net:
        us, dead, silent = (net.network(number) for number in range(3))
        net.kill(dead.peer)
        net.blackhole(silent.peer)
        began = trio.current_time()
        with pytest.raises(NoPeers) as caught:
            await join_swarm(us, [*dead.addrs, *silent.addrs])
        assert trio.current_time() - began <= JOIN_SECONDS
        assert dead.addrs[0] in caught.value.message
        assert silent.addrs[0] in caught.value.message


async def test_many_are_counted() -> None:
    async with open_memory_net() as net:
        us = net.network(0)
        gone = [f"/ip4/10.1.1.{number}/tcp/1/p2p/{us.peer}" for number in range(9)]
        with pytest.raises(NoPeers, match=r"10\.1\.1\.3/tcp/1/p2p/\S+ and 5 more"):
            await join_swarm(us, gone)


async def test_what_is_no_address_is_said_bare() -> None:
    async with open_memory_net() as net:
        with pytest.raises(BadInput):
            await join_swarm(net.network(0), ["somewhere"])


async def test_who_has_lost_all_peers_tries_again(autojump_clock: Any) -> None:
    async with open_memory_net() as net, trio.open_nursery() as nursery:
        us, door = net.network(0), net.network(1)
        await join_swarm(us, door.addrs)
        nursery.start_soon(stay_joined, us, door.addrs)
        net.kill(door.peer)
        assert not us.connected
        await trio.sleep(2 * REJOIN_SECONDS)
        net.network(1)
        await trio.sleep(REJOIN_SECONDS + 1)
        assert us.connected == (door.peer,)
        nursery.cancel_scope.cancel()


async def test_the_neighbourhood_gets_a_moment(autojump_clock: Any) -> None:
    async with open_memory_net() as net, trio.open_nursery() as nursery:
        us, other = net.network(0), net.network(1)
        began = trio.current_time()
        await wait_for_neighbours(us)
        assert trio.current_time() - began == pytest.approx(NEIGHBOUR_SECONDS)
        nursery.start_soon(join_swarm, other, us.addrs)
        await wait_for_neighbours(us)
        assert us.connected == (other.peer,)
