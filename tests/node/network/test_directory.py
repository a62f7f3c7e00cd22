"""The directory in simulated time: servers die, peers come and go, clocks are wrong, records are forged or replayed."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio
from trio.testing import MockClock

from swarmnode.errors import PeerFault, PeerRefused, PeerUnreachable
from swarmnode.node.discovery.directory import COPIES, SPARE_COPIES, Directory
from swarmnode.node.discovery.records import request
from swarmnode.node.identity import create_identity
from swarmnode.node.net.memory import MemoryNet, MemoryNetwork, open_memory_net
from swarmnode.node.net.network import PeerAddrs
from swarmnode.protocols.directory import Announce, Announced, Find, Found
from swarmnode.protocols.ids import RECORDS, ModelId
from swarmnode.protocols.keys import INDEX_KEY, model_key
from swarmnode.protocols.records import ServerRecord, sign_record

MODEL = ModelId("org/model", "r1", bytes(32))
RUNS_OUT_SECONDS = 60.0


def record_of(network: MemoryNetwork, start: int, end: int, num_blocks: int = 126) -> Callable[[int], ServerRecord]:
    def make(sequence: int) -> ServerRecord:
        return ServerRecord(
            peer=network.peer,
            sequence=sequence,
            lifetime_seconds=45.0,
            model=MODEL,
            num_blocks=num_blocks,
            start=start,
            end=end,
            dtype="float32",
            quantisation="none",
            state="online",
            cache_tokens_left=1000,
            decode_tokens_per_second=10.0,
            prefill_tokens_per_second=100.0,
            addrs=(network.listens,),
            protocols=(RECORDS,),
        )

    return make


@dataclass
class Swarm:
    """Peers of one in-memory network, each with a directory of its own."""

    net: MemoryNet
    nursery: trio.Nursery
    directories: dict[str, Directory] = field(default_factory=dict)
    networks: dict[str, MemoryNetwork] = field(default_factory=dict)
    _scopes: dict[str, trio.CancelScope] = field(default_factory=dict)

    async def add(self, seed: int, *, join: str | None = None, first_sequence: int | None = None) -> str:
        """One more peer, joined by the address given, else by the first peer's; returns its id."""
        network = self.net.network(seed)
        addr = join or (next(iter(self.networks.values())).addrs[0] if self.networks else None)
        if addr is not None:
            await network.connect(addr)
            await network.closest_peers(bytes(32), COPIES)
        directory = Directory(network, first_sequence=first_sequence)
        self.networks[network.peer], self.directories[network.peer] = network, directory
        scope = self._scopes[network.peer] = trio.CancelScope()

        async def run() -> None:
            with scope:
                await directory.run()

        self.nursery.start_soon(run)
        return network.peer

    async def serve(self, seed: int, start: int, end: int, *, first_sequence: int | None = None) -> str:
        peer = await self.add(seed, first_sequence=first_sequence)
        self.directories[peer].publish(record_of(self.networks[peer], start, end))
        await self.directories[peer].announced()
        return peer

    def kill(self, peer: str) -> None:
        """As `kill -9`: nothing is said."""
        self.net.kill(peer)
        self._scopes[peer].cancel()
        del self.directories[peer], self.networks[peer], self._scopes[peer]

    async def leave(self, peer: str) -> None:
        """As Ctrl-C: the directory says good-bye, then the network goes."""
        self._scopes[peer].cancel()
        await trio.sleep(2)
        self.kill(peer)

    async def found_by(self, peer: str) -> list[str]:
        return [record.peer for record in await self.directories[peer].find_servers(MODEL.name, 126)]


@asynccontextmanager
async def open_swarm(peers: int) -> AsyncIterator[Swarm]:
    async with open_memory_net() as net, trio.open_nursery() as nursery:
        swarm = Swarm(net, nursery)
        for seed in range(peers):
            await swarm.add(seed)
        yield swarm
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("peers", [1, 2, 3, 40, 150])
async def test_every_peer_finds_every_server(autojump_clock: MockClock, peers: int) -> None:
    async with open_swarm(peers) as swarm:
        servers = [await swarm.serve(1000 + number, 21 * number, 21 * number + 21) for number in range(6)]
        for peer in list(swarm.networks)[:: max(1, peers // 10)]:
            assert await swarm.found_by(peer) == servers
            assert await swarm.directories[peer].find_models() == [(MODEL, 126)]


async def test_a_lone_server_finds_itself(autojump_clock: MockClock) -> None:
    async with open_swarm(0) as swarm:
        server = await swarm.serve(1, 0, 126)
        assert await swarm.found_by(server) == [server]
        found = (await swarm.directories[server].find_servers(MODEL.name))[0]
        assert (await swarm.directories[server].confirm(found)).peer == server


async def test_a_dead_server_is_gone_within_a_minute_a_living_one_stays(autojump_clock: MockClock) -> None:
    async with open_swarm(20) as swarm:
        asker = next(iter(swarm.networks))
        alive, dead = await swarm.serve(100, 0, 63), await swarm.serve(101, 63, 126)
        await trio.sleep(300)
        assert await swarm.found_by(asker) == [alive, dead]
        swarm.kill(dead)
        await trio.sleep(RUNS_OUT_SECONDS)
        assert await swarm.found_by(asker) == [alive]


async def test_a_server_that_leaves_is_gone_at_once(autojump_clock: MockClock) -> None:
    async with open_swarm(20) as swarm:
        asker = next(iter(swarm.networks))
        server = await swarm.serve(100, 0, 126)
        await swarm.leave(server)
        assert await swarm.found_by(asker) == []
        stopped = await swarm.serve(101, 0, 126)
        swarm.directories[stopped].publish(None)
        await swarm.directories[stopped].announced()
        await trio.sleep(2)
        assert await swarm.found_by(asker) == []


async def test_the_swarm_survives_its_bootstrap_peer_and_newcomers_need_another_door(autojump_clock: MockClock) -> None:
    async with open_swarm(12) as swarm:
        bootstrap, other = list(swarm.networks)[:2]
        door = swarm.networks[bootstrap].addrs[0]
        server = await swarm.serve(100, 0, 126)
        swarm.kill(bootstrap)
        await trio.sleep(120)
        assert await swarm.found_by(other) == [server]
        with pytest.raises(PeerUnreachable):
            await swarm.add(200, join=door)
        newcomer = await swarm.add(201, join=swarm.networks[other].addrs[0])
        assert await swarm.found_by(newcomer) == [server]


async def test_the_newest_record_wins_everywhere(autojump_clock: MockClock) -> None:
    async with open_swarm(12) as swarm:
        asker = next(iter(swarm.networks))
        server = await swarm.serve(100, 0, 60)
        swarm.directories[server].publish(record_of(swarm.networks[server], 60, 126))
        await swarm.directories[server].announced()
        (record,) = await swarm.directories[asker].find_servers(MODEL.name)
        assert (record.start, record.end) == (60, 126)


@pytest.mark.parametrize("clock", [0, 5, 2**61])
async def test_a_restarted_server_with_a_wrong_clock_is_found(autojump_clock: MockClock, clock: int) -> None:
    async with open_swarm(12) as swarm:
        asker = next(iter(swarm.networks))
        first = await swarm.serve(100, 0, 60, first_sequence=1_700_000_000_000)
        swarm.kill(first)
        again = await swarm.serve(100, 60, 126, first_sequence=clock)
        assert again == first
        (record,) = await swarm.directories[asker].find_servers(MODEL.name)
        assert (record.start, record.end) == (60, 126)
        await trio.sleep(100)
        assert await swarm.found_by(asker) == [first]


async def offer(swarm: Swarm, key: bytes, data: bytes, age: float = 0.0) -> list[Announced]:
    """Announce to everybody, as an attacker would."""
    answers = []
    attacker = swarm.net.network(create_identity())
    for network in swarm.networks.values():
        await attacker.connect(network.addrs[0])
        peer = PeerAddrs(network.peer, (network.listens,))
        answer = await request(attacker, RECORDS, peer, Announce(key, ((data, age),)), 5.0)
        assert isinstance(answer, Announced)
        answers.append(answer)
    return answers


async def test_a_replayed_record_brings_nobody_back(autojump_clock: MockClock) -> None:
    async with open_swarm(8) as swarm:
        asker = next(iter(swarm.networks))
        server = await swarm.serve(100, 0, 126, first_sequence=50)
        network = swarm.networks[server]
        old = sign_record(record_of(network, 0, 10)(3), network.sign)
        await offer(swarm, model_key(MODEL.name), old)
        (found,) = await swarm.directories[asker].find_servers(MODEL.name)
        assert found.end == 126
        last = sign_record(record_of(network, 0, 126)(found.sequence), network.sign)
        swarm.kill(server)
        await trio.sleep(RUNS_OUT_SECONDS)
        await offer(swarm, model_key(MODEL.name), last)
        assert await swarm.found_by(asker) == []
        with pytest.raises(PeerFault):
            await swarm.directories[asker].confirm(found)


async def test_forged_and_foreign_records_are_refused(autojump_clock: MockClock) -> None:
    async with open_swarm(8) as swarm:
        asker, victim = list(swarm.networks)[:2]
        network = swarm.networks[asker]
        data = sign_record(record_of(network, 0, 126)(1), network.sign)
        forged = bytes([data[0] ^ 1]) + data[1:]
        for key, bad in ((model_key(MODEL.name), forged), (model_key("another"), data), (INDEX_KEY, b"rubbish" * 20)):
            for answer in await offer(swarm, key, bad):
                assert not answer.verdicts[0].stored
        assert await swarm.found_by(victim) == []


async def test_confirm_asks_the_server_itself(autojump_clock: MockClock) -> None:
    async with open_swarm(5) as swarm:
        asker = next(iter(swarm.networks))
        server = await swarm.serve(100, 0, 126)
        (found,) = await swarm.directories[asker].find_servers(MODEL.name)
        busy = replace(record_of(swarm.networks[server], 0, 126)(1), cache_tokens_left=7)
        swarm.directories[server].publish(lambda sequence: replace(busy, sequence=sequence))
        assert (await swarm.directories[asker].confirm(found)).cache_tokens_left == 7
        swarm.directories[server].publish(None)
        with pytest.raises(PeerRefused, match="serves nothing"):
            await swarm.directories[asker].confirm(found)
        swarm.kill(server)
        with pytest.raises(PeerFault):
            await swarm.directories[asker].confirm(found)


@pytest.mark.slow
@pytest.mark.in_turns
async def test_three_hundred_servers_of_a_deep_model_are_all_found_by_few_messages(autojump_clock: MockClock) -> None:
    rng = random.Random(7)
    async with open_swarm(40) as swarm:
        asker = next(iter(swarm.networks))
        servers = []
        for number in range(300):
            start = rng.randrange(0, 120)
            servers.append(await swarm.serve(1000 + number, start, min(126, start + rng.randrange(2, 9))))
        await trio.sleep(30)  # everybody has refreshed and knows that it is crowded
        before = swarm.net.opened_by[asker, RECORDS]
        found = await swarm.directories[asker].find_servers(MODEL.name, 126)
        assert {record.peer for record in found} == set(servers)
        assert swarm.net.opened_by[asker, RECORDS] - before <= 5 * (COPIES + SPARE_COPIES)


async def test_half_the_peers_replaced_and_still_everything_is_found(autojump_clock: MockClock) -> None:
    async with open_swarm(60) as swarm:
        servers = [await swarm.serve(1000 + number, number * 12, number * 12 + 12) for number in range(10)]
        peers = [peer for peer in swarm.networks if peer not in servers]
        for number, peer in enumerate(peers[1:31]):
            swarm.kill(peer)
            await swarm.add(2000 + number)
            await trio.sleep(2)
            if number % 5 == 0:
                newcomer = list(swarm.networks)[-1]
                assert await swarm.found_by(newcomer) == servers
                assert await swarm.found_by(peers[-1]) == servers


async def test_slow_and_silent_peers_delay_nobody(autojump_clock: MockClock) -> None:
    async with open_swarm(30) as swarm:
        servers = [await swarm.serve(1000 + number, number * 42, number * 42 + 42) for number in range(3)]
        asker = next(iter(swarm.networks))
        assert await swarm.found_by(asker) == servers
        holders = [each.peer for each in await swarm.networks[asker].closest_peers(model_key(MODEL.name), COPIES)]
        holders = [peer for peer in holders if peer not in (asker, *servers)]
        swarm.net.blackhole(holders[0])
        swarm.net.slow(holders[1], 30.0)
        start = trio.current_time()
        assert await swarm.found_by(asker) == servers
        assert trio.current_time() - start < 2


async def test_too_many_requests_are_turned_away_and_others_served(autojump_clock: MockClock) -> None:
    async with open_swarm(3) as swarm:
        server = await swarm.serve(100, 0, 126)
        target, honest = list(swarm.networks)[:2]
        greedy = swarm.net.network(555)
        await greedy.connect(swarm.networks[target].addrs[0])
        peer = PeerAddrs(target, (swarm.networks[target].listens,))

        async def ask_on() -> None:
            while True:
                assert isinstance(await request(greedy, RECORDS, peer, Find(bytes(32)), 5.0), Found)

        with pytest.raises(PeerRefused, match="Too many"):
            await ask_on()
        assert await swarm.found_by(honest) == [server]
