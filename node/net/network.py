"""What the node asks of a network: streams to peers by protocol, and the peers closest to a key. Knows no libp2p.

`host.py` keeps this promise over libp2p, `memory.py` inside one process. All errors are those of `swarmnode.errors`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from typing_extensions import Buffer

from swarmnode.node.links import Link

__all__ = ["EagerMessages", "Network", "PeerAddrs", "Stream", "StreamHandler", "WholeMessages"]


@dataclass(frozen=True, slots=True)
class PeerAddrs:
    """A peer and where it listens.

    Attributes:
        peer: its peer id in text form (`12D3Koo…`).
        addrs: multiaddrs without the `/p2p/…` part; may be empty when only the id is known.
    """

    peer: str
    addrs: tuple[str, ...] = ()


class Stream(Protocol):
    """A two-way run of bytes to one authenticated peer.

    One task may send while another receives; two senders or two receivers at once are a bug of the caller. A cancelled
    `send_all` leaves the stream in the middle of a message: reset it.
    """

    @property
    def peer(self) -> str:
        """The peer id of the other end, as proved by its key."""

    @property
    def link(self) -> Link:
        """What is known of the way to the other end. Asked on the event loop only."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything. Raises `PeerLost`."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """What has come, at least one byte; `b""` once the other end has finished. Raises `PeerLost`."""

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on. Raises `PeerLost`."""

    async def aclose(self) -> None:
        """Close politely, at once. Never raises."""

    async def reset(self) -> None:
        """Drop the stream; the other end gets `PeerLost`. Never raises."""


@runtime_checkable
class WholeMessages(Protocol):
    """A stream that carries frames whole, cut and checked by the transport. Others carry bytes only."""

    @property
    def moved_bytes(self) -> int:
        """Bytes that have come and gone so far: while it changes, the other end lives."""

    async def send_message(self, header: bytes, body: Buffer = b"") -> None:
        """Send a frame with this packed header. A cancelled send that is half out resets the stream.

        Raises:
            PeerLost: the stream broke.
            ValueError: no peer would take it.
        """

    async def receive_message(self, max_body_bytes: int) -> tuple[bytes, memoryview] | None:
        """The next frame's packed header and its body; None once the peer has finished. Cancelling loses nothing.

        Raises:
            PeerLost: the stream broke, also in the middle of a message.
            ProtocolViolation: what came is no frame within the limits.
        """


@runtime_checkable
class EagerMessages(WholeMessages, Protocol):
    """`WholeMessages` that leave in the call that sends them, where there is room."""

    def begin_message(self, header: bytes, body: Buffer = b"") -> bool:
        """Send of a frame what there is room for; whether that was all. If not, `send_message` goes on with it.

        Not while another message is under way. Raises as `send_message`.
        """


StreamHandler = Callable[[Stream], Awaitable[None]]


class Network(Protocol):
    """One peer's place in the network."""

    @property
    def peer(self) -> str:
        """Our own peer id in text form."""

    @property
    def addrs(self) -> tuple[str, ...]:
        """The full multiaddrs we listen on, `/p2p/<peer>` at the end of each."""

    @property
    def is_relayed(self) -> bool:
        """Whether others reach us through relays only, unless they punch through to us."""

    @property
    def connected(self) -> tuple[str, ...]:
        """The peer ids we have a connection to now."""

    @property
    def open_streams(self) -> int:
        """How many streams are open now, in both directions and of all protocols."""

    def link(self, peer: str) -> Link | None:
        """What is known of the way to a peer; None while there is no connection to it."""

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature of `data` by our peer key (64 bytes)."""

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Answer `protocol` with `handler`, each stream in a task of its own.

        The stream is closed when the handler returns, reset when it raises or is cancelled. A `SwarmnodeError` from
        the handler is logged in one line; the node lives on whatever the handler raises.
        """

    async def connect(self, addr: str) -> str:
        """Dial a full multiaddr (`…/p2p/<peer>`) and return the peer id.

        Raises `PeerUnreachable`, `BadInput`, and `PeerRefused` when one of us does not want the other in its swarm.
        """

    async def open_stream(self, peer: str, protocol: str, addrs: Sequence[str] = ()) -> Stream:
        """Open a stream, dialling first where there is no connection yet.

        Raises `PeerUnreachable` when none of the known and given addresses answers within the dial deadline, and
        `PeerRefused` when the peer does not speak the protocol.
        """

    async def closest_peers(self, key: bytes, count: int) -> list[PeerAddrs]:
        """The up to `count` live peers closest to a 32-byte key in Kademlia's metric, nearest first.

        We ourselves are among them where we belong; nobody who listens nowhere is, since others could not reach it.
        Asks the network; takes up to seconds.
        """

    def known_closest(self, key: bytes, count: int) -> list[PeerAddrs]:
        """The same from what we know already, without asking anybody. Instant."""
