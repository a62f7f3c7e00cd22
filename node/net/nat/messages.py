"""libp2p's messages for relays, AutoNAT and hole punching: length-prefixed protobuf to plain values and back.

Circuit relay v2, AutoNAT 1.0.0 and DCUtR of the libp2p specifications. Addresses come out as text; those that make no
sense are dropped. No byte beyond a message is read: behind it may come a relayed connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio
from google.protobuf.message import DecodeError
from multiaddr import Multiaddr

from swarmnode.errors import PeerLost, ProtocolViolation
from swarmnode.node.net.network import Stream
from swarmnode.node.net.p2p import ID, AutoNatMessage, HolePunch, HopMessage, StopMessage, id_of, peer_of

from .ledger import Status

__all__ = [
    "AUTONAT",
    "DCUTR",
    "HOP",
    "STOP",
    "Connect",
    "DialBack",
    "DialledBack",
    "Kind",
    "Limit",
    "Punch",
    "Reserve",
    "Reserved",
    "in_time",
    "receive_autonat",
    "receive_hop",
    "receive_punch",
    "receive_stop",
    "send_autonat",
    "send_hop",
    "send_punch",
    "send_stop",
]

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
AUTONAT = "/libp2p/autonat/1.0.0"
DCUTR = "/libp2p/dcutr"

MAX_MESSAGE_BYTES = 4096
"""As the specifications advise; the longest of ours has a few addresses."""
MAX_MESSAGE_ADDRS = 16
"""Of the addresses in one message, so many are looked at."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a relay lets a circuit do; 0 is no limit."""

    seconds: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Reserve:
    """A peer asks to be reachable through this relay."""


@dataclass(frozen=True, slots=True)
class Connect:
    """To a relay: connect me to `peer`. From a relay: `peer` wants you."""

    peer: str
    limit: Limit = Limit()


@dataclass(frozen=True, slots=True)
class Reserved:
    """The answer to either; `expires_at` is in seconds since 1970, 0 where nothing was reserved."""

    status: int
    expires_at: int = 0
    addrs: tuple[str, ...] = ()
    limit: Limit = Limit()


@dataclass(frozen=True, slots=True)
class DialBack:
    """Please dial me, the peer, at these addresses."""

    peer: str
    addrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DialledBack:
    """Whether that worked: 0 is yes, 100 no, anything else was not tried."""

    status: int
    addr: str = ""


class Kind:
    """The two messages of DCUtR."""

    CONNECT = 100
    SYNC = 300


@dataclass(frozen=True, slots=True)
class Punch:
    """A message of DCUtR."""

    kind: int
    addrs: tuple[str, ...] = ()


@contextmanager
def in_time(seconds: float, peer: str) -> Iterator[None]:
    """Raise `PeerLost` when the block takes longer, as if the peer had gone."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise PeerLost(f"{peer} did not answer within {seconds:.0f} s.", peer=peer) from None


# Relays. -------------------------------------------------------------------------------------------------------------


async def send_hop(stream: Stream, message: Reserve | Connect | Reserved) -> None:
    """Send to or from a relay. Raises `PeerLost`."""
    if isinstance(message, Reserve):
        out = HopMessage(type=HopMessage.RESERVE)
    elif isinstance(message, Connect):
        out = HopMessage(type=HopMessage.CONNECT)
        out.peer.id = id_of(message.peer).to_bytes()
    else:
        out = HopMessage(type=HopMessage.STATUS, status=message.status)
        if message.expires_at:
            out.reservation.expire = message.expires_at
            out.reservation.addrs.extend(_packed(message.addrs))
        if message.status == Status.OK:
            out.limit.duration, out.limit.data = message.limit.seconds, message.limit.size_bytes
    await _send(stream, out)


async def receive_hop(stream: Stream) -> Reserve | Connect | Reserved:
    """Receive from the other side of the hop protocol. Raises `PeerLost`, `ProtocolViolation`."""
    got = await _receive(stream, HopMessage)
    if not got.HasField("type"):
        raise _broken(stream)
    if got.type == HopMessage.RESERVE:
        return Reserve()
    if got.type == HopMessage.CONNECT:
        return Connect(_peer(stream, got.peer.id))
    limit = Limit(got.limit.duration, got.limit.data)
    return Reserved(got.status, got.reservation.expire, _unpacked(got.reservation.addrs), limit)


async def send_stop(stream: Stream, message: Connect | Reserved) -> None:
    """Send from a relay to the peer that is wanted, or back. Raises `PeerLost`."""
    if isinstance(message, Connect):
        out = StopMessage(type=StopMessage.CONNECT)
        out.peer.id = id_of(message.peer).to_bytes()
        out.limit.duration, out.limit.data = message.limit.seconds, message.limit.size_bytes
    else:
        out = StopMessage(type=StopMessage.STATUS, status=message.status)
    await _send(stream, out)


async def receive_stop(stream: Stream) -> Connect | Reserved:
    """Receive from the other side of the stop protocol. Raises `PeerLost`, `ProtocolViolation`."""
    got = await _receive(stream, StopMessage)
    if not got.HasField("type"):
        raise _broken(stream)
    if got.type == StopMessage.CONNECT:
        return Connect(_peer(stream, got.peer.id), Limit(got.limit.duration, got.limit.data))
    return Reserved(got.status)


# AutoNAT. ------------------------------------------------------------------------------------------------------------


async def send_autonat(stream: Stream, message: DialBack | DialledBack) -> None:
    """Ask to be dialled, or say how it went. Raises `PeerLost`."""
    out: Any = AutoNatMessage()
    if isinstance(message, DialBack):
        out.type = AutoNatMessage.DIAL
        out.dial.peer.id = id_of(message.peer).to_bytes()
        out.dial.peer.addrs.extend(_packed(message.addrs))
    else:
        out.type = AutoNatMessage.DIAL_RESPONSE
        out.dialResponse.status = message.status
        if message.addr:
            out.dialResponse.addr = _packed([message.addr])[0]
    await _send(stream, out)


async def receive_autonat(stream: Stream) -> DialBack | DialledBack:
    """Receive either. Raises `PeerLost`, `ProtocolViolation`."""
    got = await _receive(stream, AutoNatMessage)
    if got.type == AutoNatMessage.DIAL:
        return DialBack(_peer(stream, got.dial.peer.id), _unpacked(got.dial.peer.addrs))
    addrs = _unpacked([got.dialResponse.addr]) if got.dialResponse.addr else ()
    return DialledBack(got.dialResponse.status, addrs[0] if addrs else "")


# DCUtR. --------------------------------------------------------------------------------------------------------------


async def send_punch(stream: Stream, message: Punch) -> None:
    """Raises `PeerLost`."""
    await _send(stream, HolePunch(type=message.kind, ObsAddrs=_packed(message.addrs)))


async def receive_punch(stream: Stream) -> Punch | None:
    """The next message; None once the other end has finished. Raises `PeerLost`, `ProtocolViolation`."""
    try:
        got = await _receive(stream, HolePunch)
    except _Ended:
        return None
    return Punch(int(got.type), _unpacked(got.ObsAddrs))


# Bytes. --------------------------------------------------------------------------------------------------------------


class _Ended(PeerLost):
    """The other end finished where a message might have begun."""


async def _send(stream: Stream, message: Any) -> None:
    body = message.SerializeToString()
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError("a message is longer than any peer takes")
    size = len(body)
    prefix = bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])
    await stream.send_all(prefix + body)


async def _receive(stream: Stream, kind: Any) -> Any:
    size, shift = 0, 0
    while True:
        if not (byte := await stream.receive_some(1)):
            raise _Ended(f"{stream.peer} ended the stream before its message.", peer=stream.peer)
        size |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            break
        if shift > 14:
            raise _broken(stream)
    if not 0 < size <= MAX_MESSAGE_BYTES:
        raise _broken(stream)
    body = bytearray()
    while len(body) < size:
        piece = await stream.receive_some(size - len(body))
        if not piece:
            raise PeerLost(f"{stream.peer} ended the stream in the middle of a message.", peer=stream.peer)
        body += piece
    message = kind()
    try:
        message.ParseFromString(bytes(body))
    except DecodeError:
        raise _broken(stream) from None
    return message


def _peer(stream: Stream, data: bytes) -> str:
    try:
        peer = peer_of(ID(data))
    except Exception:  # noqa: BLE001 - foreign code fed by a peer: it may raise anything
        peer = None
    if peer is None:
        raise ProtocolViolation(f"{stream.peer} names a peer by what is no peer id.", peer=stream.peer)
    return peer


def _packed(addrs: Iterable[str]) -> list[bytes]:
    return [Multiaddr(addr).to_bytes() for addr in addrs][:MAX_MESSAGE_ADDRS]


def _unpacked(addrs: Sequence[bytes]) -> tuple[str, ...]:
    found: list[str] = []
    for data in addrs[:MAX_MESSAGE_ADDRS]:
        try:
            found.append(str(Multiaddr(data)))
        except Exception:  # noqa: BLE001 - foreign code fed by a peer; one bad address spoils no other
            continue
    return tuple(found)


def _broken(stream: Stream) -> ProtocolViolation:
    return ProtocolViolation(f"{stream.peer} sent what is no message of this protocol.", peer=stream.peer)
