"""Finding out that nobody can dial us, and holding places on relays for days: all on a clock that jumps."""

from __future__ import annotations

import trio
import trio.abc
import trio.testing

from support.grounds import FakeGround, World
from swarmnode.node.net.nat.autonat import DIAL_BACK_EVERY_SECONDS, AutoNat
from swarmnode.node.net.nat.keeper import Keeper
from swarmnode.node.net.nat.ledger import MAX_RESERVATIONS_PER_HOST, RESERVATION_SECONDS
from swarmnode.node.net.nat.messages import AUTONAT, DialBack, DialledBack, receive_autonat, send_autonat
from swarmnode.node.net.nat.reserving import MAX_RENEW_SECONDS, MIN_RENEW_SECONDS, RELAYS_WANTED, Held, renew_at, wanted

DAY = 24 * 3600.0
INSIDE = "/ip4/10.0.0.2/udp/4001/quic-v1"
OUTSIDE = "/ip4/203.0.113.10/udp/4001/quic-v1"


def relay_in(world: World, number: int) -> tuple[FakeGround, Keeper]:
    ground = world.ground(f"/ip4/203.0.113.{100 + number}/udp/4001/quic-v1")
    return ground, Keeper(ground, relays=True)


def meet(world: World, server: FakeGround, relay: FakeGround, seen: str = OUTSIDE) -> None:
    world.connect(server, relay, direct=True)
    server.seen[relay.peer] = seen
    server.sees[relay.peer] = relay.listens[0]
    relay.sees[server.peer] = seen


def reach_of(keeper: Keeper) -> str:
    return keeper.reach


def relays_of(keeper: Keeper) -> tuple[str, ...]:
    return keeper.reservations.relays


async def test_a_server_behind_a_nat_keeps_its_places_for_days(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        relays = [relay_in(world, number) for number in range(RELAYS_WANTED + 1)]
        server = world.ground(INSIDE)
        keeper = Keeper(server, relays=False)
        nursery.start_soon(keeper.run)
        await trio.sleep(60)
        assert reach_of(keeper) == "unknown"
        assert not server.announced
        for relay, _ in relays:
            meet(world, server, relay)
        await trio.sleep(60)
        assert reach_of(keeper) == "closed"
        assert len(keeper.reservations.relays) == RELAYS_WANTED
        assert len(server.announced) == 1
        held = [relay for relay in relays if relay[0].peer in keeper.reservations.relays]
        assert set(server.announced[-1]) == {f"{ground.listens[0]}/p2p/{ground.peer}/p2p-circuit" for ground, _ in held}
        for _ in range(2 * 24):
            await trio.sleep(3600)
            for ground, of_relay in held:
                of_relay.relay.ledger.expire(trio.current_time())
                assert of_relay.relay.ledger.reservations == 1, "no reservation lapses"
                assert ground.peer in keeper.reservations.relays
        assert len(server.announced) == 1, "nothing has changed in two days"
        # One relay goes: the fourth takes its place.
        gone, _ = held[0]
        world.part(server, gone)
        del server.seen[gone.peer]
        await trio.sleep(60)
        assert gone.peer not in keeper.reservations.relays
        assert len(keeper.reservations.relays) == RELAYS_WANTED
        assert len(server.announced) == 2
        nursery.cancel_scope.cancel()


async def test_a_server_that_is_let_in_needs_no_relay_and_says_where(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        relay, _ = relay_in(world, 0)
        server = world.ground(INSIDE)
        keeper = Keeper(server, relays=False)
        meet(world, server, relay)
        nursery.start_soon(keeper.run)
        await trio.sleep(60)
        assert reach_of(keeper) == "closed"
        world.dialable[OUTSIDE] = server.peer  # its owner forwards the port
        await trio.sleep(3600)
        assert reach_of(keeper) == "open"
        assert relays_of(keeper) == ()
        assert server.announced[-1] == (OUTSIDE,)
        nursery.cancel_scope.cancel()


async def test_on_a_local_network_nobody_is_asked(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        relay, _ = relay_in(world, 0)
        server = world.ground(INSIDE)
        keeper = Keeper(server, relays=False)
        meet(world, server, relay, seen="/ip4/10.0.0.2/udp/4001/quic-v1")
        nursery.start_soon(keeper.run)
        await trio.sleep(DAY)
        assert reach_of(keeper) == "open"
        assert not relay.dialled_back
        assert not server.announced
        nursery.cancel_scope.cancel()


async def test_a_relay_that_is_full_is_left_alone_for_a_while(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        relay, keeper_of_relay = relay_in(world, 0)
        for number in range(MAX_RESERVATIONS_PER_HOST):
            keeper_of_relay.relay.ledger.reserve(f"neighbour {number}", "203.0.113.10", trio.current_time())
        server = world.ground(INSIDE)
        keeper = Keeper(server, relays=False)
        meet(world, server, relay)
        nursery.start_soon(keeper.run)
        await trio.sleep(60)
        assert relays_of(keeper) == ()
        await trio.sleep(RESERVATION_SECONDS + 120)
        assert relays_of(keeper) == (relay.peer,)
        nursery.cancel_scope.cancel()


def test_renewal_is_early_enough_whatever_the_clocks_say() -> None:
    assert renew_at(3600.0, 0.0) == MAX_RENEW_SECONDS
    assert renew_at(120.0, 10.0) == 70.0
    assert renew_at(-1e9, 0.0) == MIN_RENEW_SECONDS
    assert renew_at(1e12, 0.0) == MAX_RENEW_SECONDS


def test_whom_to_ask() -> None:
    held = {"a": Held((), 100.0), "b": Held((), 50.0), "c": Held((), 100.0)}
    assert wanted(held, ["a", "b", "c", "d"], {}, 60.0) == (["b"], [])
    assert wanted(held, ["a", "d", "e", "f"], {"d": 70.0}, 60.0) == (["e", "f"], ["b", "c"])
    assert wanted({}, ["a"], {"a": 70.0}, 60.0) == ([], [])
    assert wanted({}, list("abcdef"), {}, 0.0) == (["a", "b", "c"], [])


async def test_autonat_dials_back_where_it_sees_the_asker_and_not_often(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        asker, helper = world.ground(INSIDE), world.ground("/ip4/203.0.113.1/tcp/4001")
        AutoNat(helper).open()
        meet(world, asker, helper)
        world.dialable[OUTSIDE] = asker.peer

        async def ask(peer: str, *addrs: str) -> DialledBack:
            stream = await asker.open_stream(helper.peer, AUTONAT)
            await send_autonat(stream, DialBack(peer, addrs))
            answer = await receive_autonat(stream)
            assert isinstance(answer, DialledBack)
            return answer

        victim = "/ip4/198.51.100.1/udp/4001/quic-v1"
        assert (await ask(asker.peer, victim)).status == 101
        assert (await ask(helper.peer, OUTSIDE)).status == 200
        assert helper.dialled_back == []
        assert await ask(asker.peer, victim, OUTSIDE, INSIDE) == DialledBack(0, OUTSIDE)
        assert helper.dialled_back == [OUTSIDE]
        assert (await ask(asker.peer, OUTSIDE)).status == 101, "so soon again"
        await trio.sleep(DIAL_BACK_EVERY_SECONDS)
        del world.dialable[OUTSIDE]
        assert (await ask(asker.peer, OUTSIDE)).status == 100
        world.part(asker, helper)
        world.connect(asker, helper, direct=False)
        await trio.sleep(DIAL_BACK_EVERY_SECONDS)
        assert (await ask(asker.peer, OUTSIDE)).status == 101, "through a relay nobody is seen anywhere"
