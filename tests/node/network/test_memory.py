"""The in-memory network behaves like the real one where other tests rely on it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from swarmnode.errors import BadInput, PeerLost, PeerRefused, PeerUnreachable
from swarmnode.node.net.memory import DIAL_SECONDS, SILENCE_SECONDS, MemoryNet, MemoryNetwork, open_memory_net
from swarmnode.node.net.metric import distance
from swarmnode.node.net.network import Network, Stream
from swarmnode.node.net.pipe import PIPE_BYTES

ECHO = "/test/echo/1"


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(data)
    await stream.send_eof()


async def two(net: MemoryNet) -> tuple[MemoryNetwork, MemoryNetwork]:
    one, other = net.network(1), net.network(2)
    other.handle(ECHO, echo)
    await one.connect(other.addrs[0])
    return one, other


async def read_all(stream: Stream) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some(65536):
        data += piece
    return bytes(data)


async def test_half_close_and_five_mebibytes() -> None:
    payload = bytes(range(256)) * 4 * 5 * 1024
    async with open_memory_net() as net:
        one, other = await two(net)
        network: Network = one
        stream = await network.open_stream(other.peer, ECHO)
        assert stream.peer == other.peer
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(payload)
                await stream.send_eof()

            nursery.start_soon(send)
            assert await read_all(stream) == payload
        await stream.aclose()


async def test_handler_knows_who_calls() -> None:
    async with open_memory_net() as net:
        one, other = await two(net)
        seen: list[str] = []

        async def note(stream: Stream) -> None:
            seen.append(stream.peer)

        other.handle("/test/note/1", note)
        stream = await one.open_stream(other.peer, "/test/note/1")
        assert await read_all(stream) == b""
        assert seen == [one.peer]


async def test_a_sender_waits_for_its_reader(autojump_clock: MockClock) -> None:
    async with open_memory_net() as net:
        one, other = await two(net)

        async def sleepy(stream: Stream) -> None:
            await trio.sleep(100)
            await read_all(stream)

        other.handle("/test/sleepy/1", sleepy)
        stream = await one.open_stream(other.peer, "/test/sleepy/1")
        await stream.send_all(bytes(PIPE_BYTES))
        assert trio.current_time() < 100
        await stream.send_all(b"x")
        assert trio.current_time() >= 100


async def test_unknown_protocol_wrong_peer_and_nobody() -> None:
    async with open_memory_net() as net:
        one, other = await two(net)
        with pytest.raises(PeerRefused, match="does not speak"):
            await one.open_stream(other.peer, "/test/none/1")
        third = net.network(3)
        with pytest.raises(PeerUnreachable):
            await one.connect(f"{other.listens}/p2p/{third.peer}")
        with pytest.raises(PeerUnreachable):
            await one.open_stream(third.peer, ECHO)
        with pytest.raises(BadInput):
            await one.connect(other.listens)


async def test_a_killed_peer_is_lost_at_once_and_can_come_back() -> None:
    async with open_memory_net() as net:
        one, other = await two(net)
        stream = await one.open_stream(other.peer, ECHO)
        net.kill(other.peer)
        with pytest.raises(PeerLost):
            await stream.receive_some(1)
        with pytest.raises(PeerLost):
            await stream.send_all(b"x")
        with pytest.raises(PeerUnreachable):
            await one.open_stream(other.peer, ECHO)
        assert one.connected == ()
        again = net.network(2)
        assert again.peer == other.peer
        again.handle(ECHO, echo)
        stream = await one.open_stream(again.peer, ECHO, again.addrs)
        await stream.send_all(b"hi")
        assert await stream.receive_some(2) == b"hi"


async def test_a_silent_peer_is_lost_after_a_while(autojump_clock: MockClock) -> None:
    async with open_memory_net() as net:
        one, other = await two(net)
        stream = await one.open_stream(other.peer, ECHO)
        net.blackhole(other.peer)
        start = trio.current_time()
        with pytest.raises(PeerLost):
            await stream.receive_some(1)
        assert trio.current_time() - start == pytest.approx(SILENCE_SECONDS)
        with pytest.raises(PeerUnreachable):
            await one.open_stream(other.peer, ECHO, other.addrs)
        assert trio.current_time() - start == pytest.approx(SILENCE_SECONDS + DIAL_SECONDS)


async def test_a_short_silence_only_delays(autojump_clock: MockClock) -> None:
    async with open_memory_net() as net:
        one, other = await two(net)
        stream = await one.open_stream(other.peer, ECHO)
        net.partition([other.peer])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"hello")
            await trio.sleep(SILENCE_SECONDS / 2)
            net.heal()
            assert await stream.receive_some(5) == b"hello"


async def test_a_slow_peer_is_slow(autojump_clock: MockClock) -> None:
    async with open_memory_net() as net:
        one, other = await two(net)
        net.slow(other.peer, 0.5)
        stream = await one.open_stream(other.peer, ECHO)
        start = trio.current_time()
        await stream.send_all(b"x")
        assert await stream.receive_some(1) == b"x"
        assert trio.current_time() - start == pytest.approx(1.0)


async def test_reset_reaches_the_other_end_and_a_failing_handler_resets(caplog: pytest.LogCaptureFixture) -> None:
    async with open_memory_net() as net:
        one, other = await two(net)

        async def fail(stream: Stream) -> None:
            raise RuntimeError("a bug")

        other.handle("/test/fail/1", fail)
        stream = await one.open_stream(other.peer, "/test/fail/1")
        with pytest.raises(PeerLost):
            await stream.receive_some(1)
        assert "a bug" in caplog.text
        stream = await one.open_stream(other.peer, ECHO)
        await stream.send_all(b"still here")
        assert await stream.receive_some(10) == b"still here"


async def test_talking_to_oneself() -> None:
    async with open_memory_net() as net:
        one, _ = await two(net)
        one.handle(ECHO, echo)
        stream = await one.open_stream(one.peer, ECHO)
        await stream.send_all(b"me")
        assert await stream.receive_some(2) == b"me"
        assert one.peer not in one.connected


async def test_closest_peers_are_the_closest_living_ones_of_our_swarm() -> None:
    key = bytes(range(32))
    async with open_memory_net() as net:
        peers = [net.network(seed) for seed in range(20)]
        stranger = net.network(99)
        for one in peers[1:]:
            await one.connect(peers[0].addrs[0])
        assert [each.peer for each in await stranger.closest_peers(key, 8)] == [stranger.peer]
        net.kill(peers[7].peer)
        alive = sorted((each.peer for each in peers if each.alive), key=lambda peer: distance(key, peer))
        found = await peers[5].closest_peers(key, 8)
        assert [each.peer for each in found] == alive[:8]
        assert found == peers[5].known_closest(key, 8)
        net.kill(peers[0].peer)
        assert len(await peers[5].closest_peers(key, 30)) == 18
        assert [each.peer for each in await peers[3].closest_peers(key, 30)] != []
