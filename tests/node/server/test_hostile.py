"""Garbage on the session protocol: one line in the log names the peer, and the next honest client is served."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.pond import Pond, Server
from swarmnode.errors import PeerLost
from swarmnode.node.net.memory import open_memory_net
from swarmnode.node.torch_thread import open_torch_thread
from swarmnode.protocols.frames import encode_frame
from swarmnode.protocols.ids import SESSION
from swarmnode.protocols.messages import (
    Attach,
    Attached,
    Break,
    Close,
    Opened,
    Output,
    Ping,
    Pong,
    Refused,
    Step,
    Successor,
    TensorHeader,
    encode,
)

if TYPE_CHECKING:
    from swarmnode.models.checkpoint import Checkpoint
    from swarmnode.node.net.memory import MemoryNetwork

TENSOR = TensorHeader("float32", (1, 2, 64))
QUIET_SECONDS = 0.05
"""A stream on which nothing comes for so long is left by the attacker."""

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
headers = st.fixed_dictionaries(
    {"type": st.sampled_from(["open", "attach", "step", "output", "break", "close", "ping", "pong", "refused", "x"])},
    optional=dict.fromkeys(("session", "model", "start", "end", "tensor", "step", "position", "nonce"), values),
)
garbage = st.one_of(
    st.binary(max_size=200),
    headers.map(lambda header: encode_frame(header)[0]),
    st.builds(lambda data: encode_frame({"type": "step"}, data)[0], st.binary(max_size=64)),
)


def honest(pond: Pond) -> list[bytes]:
    """Every message there is, in an order that makes sense nowhere."""
    asked = pond.open_message(0, 4)
    body = bytes(TENSOR.raw_bytes)
    stranger = pond.net.network(1000).peer
    nowhere = Successor(stranger, ("/ip4/10.9.9.9/tcp/1",), b"q" * 16)
    messages: list[tuple[object, bytes]] = [
        (asked, b""),
        (pond.open_message(0, 2, session=b"z" * 16, successor=nowhere), b""),
        (Attach(bytes(16)), b""),
        (Step(0, 0, 1, TENSOR), body),
        (Step(1, 2**23, 1, TENSOR), body),
        (Step(2, 0, 0, TENSOR), b"\xff" * len(body)),
        (Output(0, 0, 4, TENSOR), body),
        (Opened(bytes(16), 1, 1, 1), b""),
        (Attached(), b""),
        (Refused("peer-busy", "no"), b""),
        (Break("peer-lost", "gone"), b""),
        (Ping(1), b""),
        (Pong(1), b""),
        (Close(), b""),
    ]
    frames = []
    for message, content in messages:
        head, rest = encode(message, content)  # type: ignore[arg-type]
        frames.append(head + bytes(rest))
    return frames


async def throw(network: MemoryNetwork, server: Server, pieces: Sequence[bytes]) -> None:
    """Send pieces on one stream until the server has had enough of it."""
    stream = await network.open_stream(server.peer, SESSION, server.network.addrs)
    try:
        for piece in pieces:
            await stream.send_all(piece)
        with trio.move_on_after(QUIET_SECONDS):
            while await stream.receive_some(65536):
                pass
    except PeerLost:
        pass
    finally:
        await stream.reset()


async def served(pond: Pond, server: Server) -> None:
    """An honest client gets what the blocks give."""
    await server.idle()
    talk = await pond.opened(pond.network(), server, pond.open_message(0, 4))
    hidden = pond.hidden(2)
    await talk.step(0, hidden, 0)
    assert torch.equal((await talk.output())[1], pond.run(0, 4, hidden)[0])
    await talk.close()
    await server.idle()
    assert server.engine.cache_tokens_left == 1000


@pytest.fixture(scope="module")
def checkpoint(tiny_llama: Path) -> Checkpoint:
    from swarmnode.models.checkpoint import open_checkpoint

    return open_checkpoint(str(tiny_llama))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(garbage, min_size=1, max_size=6), min_size=1, max_size=12))
def test_bytes_that_are_no_session(checkpoint: Checkpoint, streams: list[list[bytes]]) -> None:
    async def attack() -> None:
        async with open_memory_net() as net, open_torch_thread() as torch_thread:
            pond = Pond(net, checkpoint, torch_thread)
            server, network = pond.serve(0, 4), pond.network()
            for pieces in streams:
                await throw(network, server, pieces)
            await served(pond, server)

    trio.run(attack)


async def test_honest_messages_in_any_order_cut_and_bent(pond: Pond) -> None:
    server, network = pond.serve(0, 4), pond.network()
    frames = honest(pond)
    chance = random.Random(7)

    def bend(frame: bytes) -> bytes:
        match chance.randrange(6):
            case 0:
                return frame[: chance.randrange(len(frame))]
            case 1:
                at = chance.randrange(len(frame))
                return frame[:at] + bytes([frame[at] ^ 1 << chance.randrange(8)]) + frame[at + 1 :]
            case _:
                return frame

    for _ in range(150):
        first = [frames[0]] if chance.random() < 0.5 else []
        pieces = first + [bend(chance.choice(frames)) for _ in range(chance.randrange(1, 6))]
        await throw(network, server, pieces)
    await served(pond, server)


async def test_the_log_has_one_line_that_names_the_peer(pond: Pond, caplog: pytest.LogCaptureFixture) -> None:
    server, network = pond.serve(0, 4), pond.network()
    with caplog.at_level(logging.INFO, logger="swarmnode"):
        await throw(network, server, [b"\x16\x03\x01 hello, this is TLS, is it not?"])
        await served(pond, server)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert network.peer in lines[0]
    assert "not a swarmnode frame" in lines[0]


async def test_two_hundred_streams_that_say_nothing(pond: Pond) -> None:
    server, network = pond.serve(0, 4), pond.network()
    streams = [await network.open_stream(server.peer, SESSION, server.network.addrs) for _ in range(200)]
    await served(pond, server)
    for stream in streams:
        await stream.reset()
