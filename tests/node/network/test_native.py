"""The transport in Rust, used as the node uses it: whole messages, limits, cancelling, and who holds what."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multiaddr import Multiaddr

from support.loopback import CARRIERS, CARRIERS_AND_FAMILIES, QUIC
from support.muxers import pair
from swarmnode.errors import PeerLost, ProtocolViolation
from swarmnode.node.identity import create_identity
from swarmnode.node.net.addresses import listen_socket, listening_addrs
from swarmnode.node.net.lost import WireLost
from swarmnode.node.net.native import NativeStream
from swarmnode.node.net.transport import Transport
from swarmnode.protocols.frames import FrameReader, encode_frame
from swarmnode.protocols.wire import pack

BODY_LIMIT = 1 << 20
MAX_STREAMS = 512
WINDOW_BYTES = 16 << 20
"""What a QUIC stream may have unread, and more than a TCP one may."""


@pytest.fixture(params=CARRIERS_AND_FAMILIES)
def listen(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def message(stream: NativeStream) -> tuple[bytes, bytes] | None:
    found = await stream.receive_message(BODY_LIMIT)
    return (found[0], found[1].tobytes()) if found is not None else None


async def receive_all(stream: NativeStream) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some(1 << 16):
        data += piece
    return bytes(data)


async def test_messages_are_the_frames_of_the_protocol(listen: str) -> None:
    async with pair(listen) as both:
        ours, theirs = await both.streams()

        async def send(header: dict[str, object], body: bytes) -> None:
            head, view = encode_frame(header, body)
            await ours.send_message(pack(header), body)
            await ours.send_all(head)
            await ours.send_all(view)
            await ours.send_message(pack(header), body)

        async def compare(header: dict[str, object], body: bytes) -> None:
            head, view = encode_frame(header, body)
            assert await receive_exactly(theirs, len(head) + len(view)) == head + view
            assert await message(theirs) == (pack(header), body)
            memory = bytearray(len(body) + 7)
            assert await theirs.receive_message_into(memory) == (pack(header), len(body))
            assert memory == body + bytes(7)

        examples: list[tuple[dict[str, object], bytes]] = []

        @settings(max_examples=30, database=None, suppress_health_check=list(HealthCheck))
        @given(st.text(max_size=300), st.binary(max_size=2000))
        def collect(text: str, body: bytes) -> None:
            examples.append(({"type": text}, body))

        collect()
        examples.append(({"type": "long"}, random.Random(1).randbytes(BODY_LIMIT)))
        for header, body in examples:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send, header, body)
                    await compare(header, body)


async def receive_exactly(stream: NativeStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        assert piece
        data += piece
    return bytes(data)


async def test_a_body_is_writable_aligned_and_outlives_its_stream(listen: str) -> None:
    async with pair(listen) as both:
        ours, theirs = await both.streams()
        await ours.send_message(b"\x80", bytes(range(100)))
        found = await theirs.receive_message(BODY_LIMIT)
    assert found is not None
    body = found[1]
    assert body.tobytes() == bytes(range(100))
    body[0] = 7
    assert (body[0], body.readonly, body.c_contiguous) == (7, False, True)


@pytest.mark.parametrize("listen", CARRIERS)
@pytest.mark.parametrize("pinned", [False, pytest.param(True, marks=pytest.mark.gpu)], ids=["pageable", "pinned"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_a_body_is_received_into_a_tensors_own_memory(listen: str, dtype: str, pinned: bool) -> None:
    import torch

    if pinned and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    sent = torch.randn(3, 500, 67, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    got = torch.zeros(4, *sent.shape[1:], dtype=sent.dtype, pin_memory=pinned)  # it may be larger than the body
    assert got.is_pinned() == pinned
    at = got.data_ptr()
    async with pair(listen) as both:
        ours, theirs = await both.streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_message, b"\x80", sent.view(torch.uint8).numpy().data)
            came = await theirs.receive_message_into(got.view(torch.uint8).numpy().data)
        assert came == (b"\x80", sent.nbytes)
    assert got.data_ptr() == at
    assert torch.equal(got[:3], sent)
    assert not got[3].any()


async def test_several_messages_are_in_flight_and_the_end_is_told_from_a_break(listen: str) -> None:
    async with pair(listen) as both:
        ours, theirs = await both.streams()
        for number in range(50):
            await ours.send_message(b"\x80", bytes([number]) * 1000)
        await ours.send_eof()
        for number in range(50):
            assert await message(theirs) == (b"\x80", bytes([number]) * 1000)
        assert await theirs.receive_message(BODY_LIMIT) is None
        assert theirs.moved_bytes > 50_000
        ours, theirs = await both.streams()
        await ours.send_all(encode_frame({"a": 1}, bytes(100))[0])
        await ours.send_eof()
        with pytest.raises(PeerLost, match="middle of a message"):
            await theirs.receive_message(BODY_LIMIT)


async def test_what_is_no_message_or_too_long_is_refused_for_good(listen: str) -> None:
    async with pair(listen) as both:
        for sent, why in (
            (bytes(16), "not a swarmnode frame"),
            (encode_frame({"a": 1}, bytes(BODY_LIMIT + 1))[0], "at most"),
            (b"".join(encode_frame({"a": 1}, b"body"))[:-1] + b"x", "checksum"),
        ):
            ours, theirs = await both.streams()
            await ours.send_all(sent)
            for _ in range(2):
                with pytest.raises(ProtocolViolation, match=why):
                    await theirs.receive_message(BODY_LIMIT)
        ours, _ = await both.streams()
        with pytest.raises(ValueError, match="over the limits"):
            await ours.send_message(b"")


async def test_a_cancelled_receive_loses_nothing(listen: str) -> None:
    data = b"".join(b"".join(encode_frame({"n": number}, bytes([number]) * 3000)) for number in range(20))
    async with pair(listen) as both:
        ours, theirs = await both.streams()
        found: list[bytes] = []
        done = trio.Event()

        async def receive() -> None:
            while len(found) < 20:
                with trio.CancelScope() as scope:
                    scopes.append(scope)
                    came = await theirs.receive_message(BODY_LIMIT)
                    assert came is not None
                    found.append(came[1].tobytes())
            done.set()

        scopes: list[trio.CancelScope] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for start in range(0, len(data), 700):
                await ours.send_all(data[start : start + 700])
                await trio.testing.wait_all_tasks_blocked()
                if scopes:
                    scopes[-1].cancel()
            await done.wait()
        assert found == [bytes([number]) * 3000 for number in range(20)]


async def test_a_receive_into_lent_memory_that_is_cancelled_breaks_the_stream_and_no_other(listen: str) -> None:
    async with pair(listen) as both:
        ours, theirs = await both.streams()
        head, body = encode_frame({"a": 1}, bytes(5000))
        await ours.send_all(head + body[:2000])
        memory = bytearray(5000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.receive_message_into, memory)
            while theirs.moved_bytes < 1 + len(head) + 2000:
                await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        with pytest.raises(ProtocolViolation, match="given up"):
            await theirs.receive_message(BODY_LIMIT)
        ours, theirs = await both.streams()
        await ours.send_message(b"\x80", b"well?")
        assert await message(theirs) == (b"\x80", b"well?")


async def test_a_send_cancelled_half_way_resets_its_stream_and_no_other(listen: str) -> None:
    async with pair(listen) as both:
        ours, theirs = await both.streams()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    for _ in range(4):
                        await ours.send_message(b"\x80", bytes(WINDOW_BYTES))

                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked(0.05)  # nobody reads: it is in the midst of one
                scope.cancel()
        assert scope.cancelled_caught
        with pytest.raises(PeerLost):
            await receive_all(theirs)
        ours, theirs = await both.streams()
        await ours.send_message(b"\x80", b"well?")
        assert await message(theirs) == (b"\x80", b"well?")


async def test_a_stalled_reader_stops_its_writer_and_nobody_else(listen: str) -> None:
    async with pair(listen) as both:
        ours, theirs = await both.streams()
        data = bytes(2 * WINDOW_BYTES)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await ours.send_all(data)
                await ours.send_eof()

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert ours.moved_bytes < len(data)  # it waits
            for _ in range(3):
                lively, far = await both.streams()
                await lively.send_message(b"\x80", b"meanwhile")
                assert await message(far) == (b"\x80", b"meanwhile")
            assert len(await receive_all(theirs)) == len(data)


async def test_streams_are_bounded_and_the_next_waits_its_turn() -> None:
    async with pair(QUIC) as both:
        opened = [await both.here.open() for _ in range(MAX_STREAMS)]
        assert both.here.open_streams == MAX_STREAMS
        with trio.move_on_after(0.1) as scope:
            await both.here.open()
        assert scope.cancelled_caught
        for stream in opened:
            await stream.reset()
        async with trio.open_nursery() as nursery:

            async def sweep() -> None:
                while True:
                    await (await both.there.accept()).reset()

            nursery.start_soon(sweep)
            with trio.fail_after(10):
                await both.here.open()
            nursery.cancel_scope.cancel()


async def test_the_end_of_a_connection_wakes_whoever_waits_and_says_whether_it_was_meant(listen: str) -> None:
    async with pair(listen) as both:
        ours, theirs = await both.streams()
        woken: list[str] = []

        async def wait(what: str) -> None:
            with pytest.raises((PeerLost, WireLost)):
                await (theirs.receive_some(1) if what == "stream" else both.there.accept())
            woken.append(what)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "stream")
            nursery.start_soon(wait, "connection")
            await trio.testing.wait_all_tasks_blocked()
            both.here.close(say=True)
        assert sorted(woken) == ["connection", "stream"]
        await both.there.ended.wait()
        assert both.there.polite_end
        assert both.there.closed
        with pytest.raises(PeerLost):
            await ours.send_all(b"x")


async def test_stats_pings_and_exporters() -> None:
    async with pair(QUIC) as both:
        assert await both.here.ping() > 0
        stats = both.here.stats()
        assert 0 < stats.round_trip_seconds < 5
        assert min(stats.sent_packets, stats.window_bytes, stats.sent_bytes, stats.received_bytes) > 0
        assert 1200 <= stats.datagram_bytes <= 6500  # more than Ethernet carries, as it stays on this machine
        assert both.here.link.near
        assert both.here.exporter(b"label", b"", 32) == both.there.exporter(b"label", b"", 32)
        assert both.here.exporter(b"label", b"", 32) != both.here.exporter(b"label", b"more", 32)


async def test_both_ends_on_one_machine_are_near_whatever_address_was_dialled(listen: str) -> None:
    everywhere = listen.replace("/127.0.0.1/", "/0.0.0.0/").replace("/::1/", "/::/")
    with listen_socket(everywhere) as probe:
        if any(loopback in listening_addrs(probe)[0] for loopback in ("/127.", "/::1/")):
            pytest.skip("this machine has no such address but loopback")
    async with pair(everywhere) as both:
        await both.streams()
        assert both.here.link.near
        assert both.there.link.near


async def line(output: trio.abc.ReceiveStream) -> str:
    """What a process prints up to the end of a line, which may come in pieces."""
    said = b""
    while not said.endswith(b"\n"):
        piece = await output.receive_some()
        assert piece, "it has ended"
        said += piece
    return said.decode().strip()


HOG = """
import mmap, sys, trio
from swarmnode.node.identity import create_identity
from swarmnode.node.net.addresses import listen_socket, listening_addrs
from swarmnode.node.net.transport import Transport
async def main():
    identity = create_identity()
    transport = Transport(identity)
    sock = listen_socket("/ip4/127.0.0.1/udp/0/quic-v1")
    print(f"{listening_addrs(sock)[0]}/p2p/{identity.peer}", flush=True)
    transport.listen(sock)
    connection = await transport.accept()
    sys.setswitchinterval(1e6)
    with open(sys.argv[1], "r+b") as file:
        flags = mmap.mmap(file.fileno(), 2)
    flags[0] = 1
    while not flags[1]:  # nothing in here gives up the interpreter's lock
        pass
    print("let go", flush=True)
trio.run(main)
"""


async def test_rust_goes_on_while_python_holds_the_interpreters_lock(tmp_path: Path) -> None:
    shared = tmp_path / "flags"
    shared.write_bytes(bytes(2))
    with shared.open("r+b") as file:
        flags = mmap.mmap(file.fileno(), 2)
    process = await trio.lowlevel.open_process([sys.executable, "-c", HOG, str(shared)], stdout=subprocess.PIPE)
    transport = Transport(create_identity())
    try:
        assert process.stdout is not None
        with trio.fail_after(60):
            addr = await line(process.stdout)
            muxer = (await transport.dial(Multiaddr(addr))).muxer
            while not flags[0]:  # noqa: ASYNC110 - it is another process's memory
                await trio.sleep(0.01)
            for _ in range(20):  # were the lock needed, the first would not be answered
                await muxer.ping()
            flags[1] = 1
            assert await line(process.stdout) == "let go"
    finally:
        transport.close()
        process.kill()
        await process.wait()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads of Rust are only to be seen there")
def test_importing_starts_no_thread() -> None:
    code = "import swarmnode.node.net.host, os; print(len(os.listdir('/proc/self/task')))"
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert told.stdout.strip() == "1"


def test_a_reader_of_bytes_reads_what_a_writer_of_messages_wrote() -> None:
    """The slow reference of both: `FrameReader` takes what `encode_frame` made, byte by byte."""
    whole = b"".join(encode_frame({"a": 1}, b"body"))
    reader = FrameReader()
    for byte in whole:
        assert reader.next_frame() is None
        reader.feed(bytes([byte]))
    frame = reader.next_frame()
    assert frame is not None
    assert frame.header == {"a": 1}
    assert frame.body.tobytes() == b"body"
