"""libp2p's own messages: those of the specifications byte for byte, and rubbish refused."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmnode.errors import PeerFault, PeerLost, ProtocolViolation
from swarmnode.node.identity import identity_from_seed
from swarmnode.node.net.nat.messages import (
    Connect,
    DialBack,
    DialledBack,
    Kind,
    Limit,
    Punch,
    Reserve,
    Reserved,
    receive_autonat,
    receive_hop,
    receive_punch,
    receive_stop,
    send_autonat,
    send_hop,
    send_punch,
    send_stop,
)
from swarmnode.node.net.pipe import open_pipe

PEER = identity_from_seed(bytes(32)).peer
ADDRS = ("/ip4/192.0.2.1/udp/4001/quic-v1", "/ip6/2001:db8::1/tcp/4001")
RECEIVERS = (receive_hop, receive_stop, receive_autonat, receive_punch)


@pytest.mark.parametrize(
    ("send", "receive", "message"),
    [
        (send_hop, receive_hop, Reserve()),
        (send_hop, receive_hop, Connect(PEER)),
        (send_hop, receive_hop, Reserved(100, 1_900_000_000, ADDRS, Limit(3600, 1 << 30))),
        (send_hop, receive_hop, Reserved(200)),
        (send_stop, receive_stop, Connect(PEER, Limit(60, 0))),
        (send_stop, receive_stop, Reserved(100)),
        (send_autonat, receive_autonat, DialBack(PEER, ADDRS)),
        (send_autonat, receive_autonat, DialledBack(0, ADDRS[0])),
        (send_autonat, receive_autonat, DialledBack(101)),
        (send_punch, receive_punch, Punch(Kind.CONNECT, ADDRS)),
        (send_punch, receive_punch, Punch(Kind.SYNC)),
    ],
)
async def test_a_message_comes_as_it_was_sent_and_nothing_behind_it_is_read(
    send: Any, receive: Any, message: object
) -> None:
    here, there = open_pipe("a", "b")
    await send(here, message)
    await here.send_all(b"the connection behind it")
    assert await receive(there) == message
    assert await there.receive_some(100) == b"the connection behind it"


async def test_the_bytes_are_those_of_the_specifications() -> None:
    here, there = open_pipe("a", "b")
    cases: tuple[tuple[Any, object, str], ...] = (
        (send_hop, Reserve(), "020800"),
        (send_hop, Reserved(204), "05080228cc01"),
        (send_punch, Punch(Kind.SYNC), "0308ac02"),
        (send_punch, Punch(Kind.CONNECT, ("/ip4/192.0.2.1/udp/4001/quic-v1",)), "0f0864120b04c000020191020fa1cd03"),
        (send_autonat, DialledBack(101), "0608011a020865"),
    )
    for send, message, expected in cases:
        await send(here, message)
        assert (await there.receive_some(1000)).hex() == expected


@pytest.mark.parametrize("receive", RECEIVERS)
@given(data=st.binary(max_size=200))
async def test_rubbish_is_refused_in_our_words(receive: Any, data: bytes) -> None:
    here, there = open_pipe("a", "b")
    await here.send_all(data)
    await here.send_eof()
    with suppress(PeerFault):
        await receive(there)


@pytest.mark.parametrize("receive", RECEIVERS)
@pytest.mark.parametrize("data", ["00", "8120", "ffffffffff01", "03ffffff"])
async def test_lengths_are_bounded_and_fields_checked(receive: Any, data: str) -> None:
    here, there = open_pipe("a", "b")
    await here.send_all(bytes.fromhex(data))
    with pytest.raises(ProtocolViolation):
        await receive(there)


async def test_the_end_is_told_from_an_end_in_the_middle() -> None:
    here, there = open_pipe("a", "b")
    await here.send_eof()
    assert await receive_punch(there) is None
    here, there = open_pipe("a", "b")
    await here.send_all(b"\x05\x08")
    await here.send_eof()
    with pytest.raises(PeerLost):
        await receive_punch(there)
