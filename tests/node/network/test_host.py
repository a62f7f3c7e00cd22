"""The libp2p network over real sockets on loopback: streams, strangers, death, silence, garbage, and a clean end."""

from __future__ import annotations

import gc
import logging
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import psutil
import pytest
import trio
import trio.testing
from libp2p.custom_types import TProtocol
from multiaddr import Multiaddr

from support.links import until_links
from support.loopback import CARRIERS, CARRIERS_AND_FAMILIES, TCP
from swarmnode.errors import BadInput, PeerLost, PeerRefused, PeerUnreachable, PortInUse
from swarmnode.node.identity import create_identity, identity_from_seed
from swarmnode.node.net.addresses import dialable
from swarmnode.node.net.dialing import DIAL_SECONDS
from swarmnode.node.net.host import open_host
from swarmnode.node.net.lost import WireLost
from swarmnode.node.net.network import Network, Stream
from swarmnode.node.net.p2p import ID, INetStream, new_host

LOOPBACK = (TCP,)
ECHO = "/test/echo/1"
HANG_SECONDS = 60.0
"""Nothing here takes so long, whatever else the machine does."""
SPECIAL_PEER = """
import sys, trio
from swarmnode.node.net.host import open_host
from swarmnode.node.identity import create_identity
async def echo(stream):
    while data := await stream.receive_some(65536):
        await stream.send_all(data)
async def main():
    async with open_host(create_identity(), listen=[sys.argv[1]]) as network:
        network.handle("/test/echo/1", echo)
        print(network.addrs[0], flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.fixture(params=CARRIERS)
def each_carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs over either."""
    monkeypatch.setattr(sys.modules[__name__], "LOOPBACK", (request.param,))


@pytest.fixture(params=CARRIERS_AND_FAMILIES)
def each_carrier_and_family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, and over IPv6."""
    monkeypatch.setattr(sys.modules[__name__], "LOOPBACK", (request.param,))


over_each = pytest.mark.usefixtures("each_carrier")
over_all = pytest.mark.usefixtures("each_carrier_and_family")


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(data)
    await stream.send_eof()


@asynccontextmanager
async def hosts(count: int, listen: tuple[str, ...] | None = None) -> AsyncIterator[list[Network]]:
    listen = LOOPBACK if listen is None else listen
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_host(create_identity(), listen=listen)) for _ in range(count)]
        for network in opened:
            network.handle(ECHO, echo)
        yield opened


@asynccontextmanager
async def other_process() -> AsyncIterator[tuple[str, trio.Process]]:
    """A peer in a process of its own, to be killed or frozen; yields its address."""
    process = await trio.lowlevel.open_process([sys.executable, "-c", SPECIAL_PEER, *LOOPBACK], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield (await process.stdout.receive_some()).decode().strip(), process
    finally:
        process.kill()
        await process.wait()


async def read_all(stream: Stream) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some(1 << 20):
        data += piece
    return bytes(data)


async def ask(network: Network, peer: str, question: bytes, addrs: tuple[str, ...] = ()) -> bytes:
    """One honest request."""
    stream = await network.open_stream(peer, ECHO, addrs)
    await stream.send_all(question)
    await stream.send_eof()
    answer = await read_all(stream)
    await stream.aclose()
    return answer


def port_of(network: Network) -> int:
    return int(network.addrs[0].split("/")[4])


@over_all
async def test_half_close_five_mebibytes_and_who_is_there() -> None:
    payload = random.Random(1).randbytes(5 * 1024 * 1024)
    async with hosts(2) as (one, other):
        assert await one.connect(other.addrs[0]) == other.peer
        stream = await one.open_stream(other.peer, ECHO)
        assert stream.peer == other.peer
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(payload)
                await stream.send_eof()

            nursery.start_soon(send)
            assert await read_all(stream) == payload
        await stream.aclose()
        assert one.connected == (other.peer,)
        assert other.connected == (one.peer,)


@over_all
async def test_both_ends_send_much_at_once_over_many_streams() -> None:
    size = 3 * 1024 * 1024
    async with hosts(2) as (one, other):

        async def flood(stream: Stream) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, bytes(size))
                left = size
                while left:
                    left -= len(await stream.receive_some(left))

        other.handle("/test/flood/1", flood)
        await one.connect(other.addrs[0])
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(flood, await one.open_stream(other.peer, "/test/flood/1"))


@over_each
async def test_a_stalled_reader_delays_its_sender_and_nobody_else() -> None:
    async with hosts(2) as (one, other):
        go_on = trio.Event()
        read: list[int] = []

        async def stalled(stream: Stream) -> None:
            await go_on.wait()
            read.append(len(await read_all(stream)))

        other.handle("/test/stalled/1", stalled)
        await one.connect(other.addrs[0])
        stream = await one.open_stream(other.peer, "/test/stalled/1")
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(bytes(2 * 1024 * 1024))
                await stream.send_eof()

            nursery.start_soon(send)
            # longer than the 5 s after which py-libp2p's own muxer resets a waiting writer
            for _ in range(12):
                assert await ask(one, other.peer, b"meanwhile") == b"meanwhile"
                await trio.sleep(0.5)
            go_on.set()
            assert await stream.receive_some(1) == b""
        assert read == [2 * 1024 * 1024]


@over_each
async def test_a_cancelled_sender_harms_no_other_stream() -> None:
    async with hosts(2) as (one, other):
        await one.connect(other.addrs[0])
        for number in range(20):
            stream = await one.open_stream(other.peer, ECHO)
            with trio.move_on_after(0.002 * number):
                await stream.send_all(bytes(8 * 1024 * 1024))
            await stream.reset()
        assert await ask(one, other.peer, b"well?") == b"well?"
        assert one.connected == (other.peer,)


@over_all
async def test_unknown_protocol_wrong_peer_bad_address_nobody_there() -> None:
    async with hosts(2) as (one, other):
        await one.connect(other.addrs[0])
        with pytest.raises(PeerRefused, match="does not speak /test/none/1"):
            await one.open_stream(other.peer, "/test/none/1")
        stranger = create_identity().peer
        with pytest.raises(PeerUnreachable, match="another peer"):
            await one.connect(other.addrs[0].replace(other.peer, stranger))
        with pytest.raises(PeerUnreachable, match="no address"):
            await one.open_stream(stranger, ECHO)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(PeerUnreachable, match="refused"):
                await one.connect(f"/ip4/127.0.0.1/tcp/{unused.getsockname()[1]}/p2p/{stranger}")
        for bad in (
            other.addrs[0].partition("/p2p/")[0],
            "",
            "/ip4/1.2.3/tcp/1/p2p/x",
            "/ip4/1.2.3.4/udp/1",
            "x" * 999,
        ):
            with pytest.raises(BadInput):
                await one.connect(bad)


async def test_where_udp_leads_nowhere_tcp_is_taken_and_nobody_is_bothered(caplog: pytest.LogCaptureFixture) -> None:
    async with hosts(2) as (one, other):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:  # as behind a firewall that drops it
            silent.bind(("127.0.0.1", 0))
            dead = f"/ip4/127.0.0.1/udp/{silent.getsockname()[1]}/quic-v1"
            assert str(dialable([other.addrs[0], dead], other.peer)[0]) == dead
            with trio.fail_after(DIAL_SECONDS):
                stream = await one.open_stream(other.peer, ECHO, [other.addrs[0], dead])
            await stream.send_all(b"through")
            assert await stream.receive_some(100) == b"through"
            assert silent.recv(2000)  # it was tried, and first
        [muxer] = one._muxers(other.peer)  # type: ignore[attr-defined]
        assert muxer.remote_address.multiaddr == other.addrs[0].partition("/p2p/")[0]
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@over_all
async def test_reset_failing_handler_and_talking_to_oneself(caplog: pytest.LogCaptureFixture) -> None:
    async with hosts(2) as (one, other):

        async def fail(stream: Stream) -> None:
            await stream.receive_some(1)  # a reset may overtake the answer to the greeting
            async with trio.open_nursery():
                raise RuntimeError("a bug")

        other.handle("/test/fail/1", fail)
        await one.connect(other.addrs[0])
        stream = await one.open_stream(other.peer, "/test/fail/1")
        await stream.send_all(b"x")
        with pytest.raises(PeerLost):
            await stream.receive_some(1)
        assert "a bug" in caplog.text
        stream = await one.open_stream(other.peer, ECHO)
        await stream.reset()
        with pytest.raises(PeerLost):
            await stream.send_all(b"x")
        assert await ask(one, other.peer, b"still") == b"still"
        assert await ask(one, one.peer, b"me") == b"me"


@over_each
async def test_a_killed_process_is_lost_at_once() -> None:
    async with hosts(1) as (one,), other_process() as (addr, process):
        peer = await one.connect(addr)
        stream = await one.open_stream(peer, ECHO)
        await stream.send_all(b"alive")
        assert await stream.receive_some(5) == b"alive"
        process.send_signal(signal.SIGKILL)
        with trio.fail_after(3), pytest.raises(PeerLost):
            await stream.receive_some(1)
        with trio.fail_after(3), pytest.raises(PeerUnreachable):
            await one.open_stream(peer, ECHO)
        with trio.fail_after(3):
            assert [each.peer for each in await one.closest_peers(bytes(32), 8)] == [one.peer]


@over_each
async def test_a_frozen_process_is_lost_within_seconds() -> None:
    async with hosts(1) as (one,), other_process() as (addr, process):
        peer = await one.connect(addr)
        stream = await one.open_stream(peer, ECHO)
        process.send_signal(signal.SIGSTOP)
        with trio.fail_after(15), pytest.raises(PeerLost):
            await stream.receive_some(1)
        process.send_signal(signal.SIGCONT)
        assert await ask(one, peer, b"back", (addr,)) == b"back"


@over_each
async def test_whom_others_tell_of_but_who_is_silent_is_not_found_and_forgotten() -> None:
    async with hosts(2) as (one, other), other_process() as (addr, process):
        silent = await other.connect(addr)
        assert silent in [each.peer for each in other.known_closest(bytes(32), 8)]
        process.send_signal(signal.SIGSTOP)  # the kernel still takes connections for it
        await one.connect(other.addrs[0])
        with trio.fail_after(15):
            found = await one.closest_peers(bytes(32), 8)
        assert {each.peer for each in found} == {one.peer, other.peer}
        assert {each.peer for each in one.known_closest(bytes(32), 8)} == {one.peer, other.peer}
        process.send_signal(signal.SIGCONT)


@over_each
async def test_those_who_listen_nowhere_are_close_to_nothing() -> None:
    """However many there are: what they keep, others would not find."""
    async with hosts(2) as (one, other), hosts(12, ()) as silent:
        await one.connect(other.addrs[0])
        await other.connect(one.addrs[0])
        for each in silent:
            await each.connect(one.addrs[0])
            await each.connect(other.addrs[0])
            await one.open_stream(each.peer, ECHO)  # it is there, all the same
        for asker in (one, other, silent[0]):
            found = await asker.closest_peers(bytes(32), 8)
            assert {each.peer for each in found} == {one.peer, other.peer}
            assert {each.peer for each in asker.known_closest(bytes(32), 8)} == {one.peer, other.peer}


@over_each
async def test_four_hundred_connections_come_and_go() -> None:
    async with hosts(1) as (server,):
        for _ in range(20):
            async with hosts(20, ()) as clients, trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(client.connect, server.addrs[0])
        with trio.fail_after(HANG_SECONDS):
            await until_links(server, lambda: not server.connected)
        async with hosts(1) as (honest,):
            await honest.connect(server.addrs[0])
            assert await ask(honest, server.peer, b"room?") == b"room?"


async def test_plain_text_is_refused() -> None:
    async with hosts(2) as (server, honest):
        async with await trio.open_tcp_stream("127.0.0.1", port_of(server)) as stranger:
            await stranger.send_all(b"\x13/multistream/1.0.0\n\x11/plaintext/2.0.0\n")
            answer = b""
            while not answer.endswith(b"\x03na\n"):
                answer += await stranger.receive_some(100)
            assert answer == b"\x13/multistream/1.0.0\n\x03na\n"
        await honest.connect(server.addrs[0])


async def test_garbage_on_the_port_then_honest_service() -> None:
    rng = random.Random(2)
    hello = b"\x13/multistream/1.0.0\n\x07/noise\n"
    async with hosts(2) as (server, honest):
        half_open: list[trio.SocketStream] = []
        for batch in range(10):
            for number in range(100):
                stream = await trio.open_tcp_stream("127.0.0.1", port_of(server))
                kind = (batch * 100 + number) % 5
                sent = (
                    rng.randbytes(rng.randrange(1, 2000)),
                    hello[: rng.randrange(1, len(hello))],
                    hello + b"\x00\x20" + rng.randbytes(32) + rng.randbytes(rng.randrange(200)),
                    hello + b"\xff\xff" + bytes(70000),
                    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                )[kind]
                await stream.send_all(sent)
                if number % 2:
                    half_open.append(stream)
                else:
                    await stream.aclose()
            assert await honest.connect(server.addrs[0]) == server.peer
            assert await ask(honest, server.peer, b"hello") == b"hello"
        async with hosts(1) as (newcomer,):
            assert await newcomer.connect(server.addrs[0]) == server.peer
        for stream in half_open:
            await stream.aclose()


async def test_garbage_from_a_proved_peer_then_honest_service() -> None:
    rng = random.Random(3)
    async with hosts(3) as (server, rude, honest):
        for number in range(60):
            await rude.connect(server.addrs[0])
            muxer = rude._muxer(server.peer)  # type: ignore[attr-defined]
            with suppress(WireLost, PeerLost):  # the server may have had enough of it just now
                stream = await muxer.open()
                if number % 2:
                    await stream.send_all(rng.randbytes(100))  # no protocol is agreed on
                else:
                    await stream.send_all(b"\x13/multistream/1.0.0\n\x03\xff\xfe\n")  # broken UTF-8
            await trio.sleep(0.005)
        await honest.connect(server.addrs[0])
        assert await ask(honest, server.peer, b"hello") == b"hello"


async def test_port_in_use_and_addresses_that_are_not_ours() -> None:
    async with hosts(1) as (one,):
        taken = f"/ip4/127.0.0.1/tcp/{port_of(one)}"
        with pytest.raises(PortInUse, match=taken) as refused:
            async with open_host(create_identity(), listen=[taken]):
                pass
        assert "--listen" in refused.value.hint
        for bad in ("/ip4/192.0.2.1/tcp/0", "/dns4/localhost/tcp/0", "/ip4/127.0.0.1/tcp/99999"):
            with pytest.raises(BadInput):
                async with open_host(create_identity(), listen=[bad]):
                    pass
        assert one.addrs == (f"{taken}/p2p/{one.peer}",)
        async with open_host(create_identity(), listen=["/ip4/0.0.0.0/tcp/0"]) as wide:
            assert wide.addrs
            assert not any("0.0.0.0" in addr for addr in wide.addrs)


@pytest.mark.slow
async def test_neighbours_find_each_other_by_multicast() -> None:
    async with (
        open_host(create_identity(), listen=["/ip4/0.0.0.0/tcp/0"], mdns=True) as one,
        open_host(create_identity(), listen=["/ip4/0.0.0.0/tcp/0"], mdns=True) as other,
    ):
        with trio.fail_after(HANG_SECONDS):
            await until_links(one, lambda: other.peer in one.connected)
        start = trio.current_time()
    assert trio.current_time() - start < 4


async def test_the_blocks_own_error_comes_out_bare() -> None:
    with pytest.raises(KeyError):
        async with open_host(create_identity(), listen=LOOPBACK):
            raise KeyError


async def _twenty_come_and_go() -> None:
    async with hosts(1) as (server,):
        async with AsyncExitStack() as stack:
            for _ in range(20):
                client = await stack.enter_async_context(open_host(create_identity(), listen=LOOPBACK))
                await client.connect(server.addrs[0])
                stream = await client.open_stream(server.peer, ECHO)
                await stream.send_all(b"x")
            start = trio.current_time()
        assert trio.current_time() - start < 20  # twenty hosts, one after the other


@over_each
async def test_closing_leaves_nothing_and_takes_no_second() -> None:
    async with hosts(1):
        pass  # whatever is made once per process
    process = psutil.Process()
    gc.collect()  # what earlier tests left to be collected is not ours to count
    files, threads = process.num_fds(), process.num_threads()
    tasks = trio.lowlevel.current_statistics().tasks_living
    await _twenty_come_and_go()
    await trio.testing.wait_all_tasks_blocked()
    gc.collect()
    assert process.num_fds() <= files  # what earlier tests left may have gone meanwhile
    assert process.num_threads() <= threads
    assert trio.lowlevel.current_statistics().tasks_living <= tasks


async def test_the_same_key_gives_the_same_peer_and_py_libp2p_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    identity = identity_from_seed(bytes(32))
    handlers = list(logging.getLogger().handlers)
    async with open_host(identity, listen=LOOPBACK) as one, hosts(1) as (other,):
        assert one.peer == identity.peer
        await other.connect(one.addrs[0])
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


async def test_a_stock_libp2p_host_talks_to_us_and_we_to_it() -> None:
    stock = new_host()
    payload = random.Random(4).randbytes(300_000)

    async def stock_echo(stream: INetStream) -> None:
        await stream.write(await stream.read(5))
        await stream.close()

    stock.set_stream_handler(TProtocol(ECHO), stock_echo)
    async with hosts(1, (TCP,)) as (ours,), stock.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        peer = await ours.connect(str(stock.get_addrs()[0]))
        stream = await ours.open_stream(peer, ECHO)
        await stream.send_all(b"hello")
        assert await read_all(stream) == b"hello"
        await stream.aclose()
        theirs = await stock.new_stream(ID.from_base58(ours.peer), [TProtocol(ECHO)])
        await theirs.write(payload)
        answer = b""
        while len(answer) < len(payload):
            answer += await theirs.read(65536)
        assert answer == payload
