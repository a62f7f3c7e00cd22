"""What relaying, AutoNAT and punching ask of the host beneath. Knows no libp2p; `host.py` keeps the promise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from swarmnode.node.net.network import Stream, StreamHandler

__all__ = ["Ground"]


class Ground(Protocol):
    """A host as the NAT rooms see it. Addresses are multiaddrs without the peer that listens there."""

    @property
    def peer(self) -> str:
        """Our own peer id."""

    @property
    def listens(self) -> tuple[str, ...]:
        """Where our own sockets listen, a wildcard resolved to the machine's addresses."""

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """As `Network.handle`."""

    async def open_stream(self, peer: str, protocol: str, addrs: Sequence[str] = ()) -> Stream:
        """As `Network.open_stream`."""

    def seen_at(self, peer: str) -> tuple[str, ...]:
        """Where the other ends of our direct connections to a peer are; empty when there is none."""

    def observed(self) -> dict[str, str]:
        """Where directly connected peers say that they see us, by peer."""

    def speakers(self, protocol: str) -> tuple[str, ...]:
        """The directly connected peers that say they speak a protocol."""

    def known_addrs(self, peer: str) -> tuple[str, ...]:
        """Where a peer says it listens."""

    def relayed(self, peer: str) -> bool:
        """Whether all our connections to a peer go through relays, and there is one."""

    async def direct(self, peer: str) -> None:
        """Wait until there is a direct connection to a peer."""

    async def carry(self, stream: Stream, peer: str, relay: str, *, opened_by_us: bool) -> None:
        """Make a connection to `peer` of a stream through `relay`, and hold it until it ends.

        With `opened_by_us` it returns once the connection stands, and the host holds it.

        Raises:
            PeerUnreachable: the other end is not that peer, or may not come in.
        """

    async def dial(self, peer: str, addr: str) -> None:
        """Connect to a peer at one address, directly. Raises `PeerUnreachable`."""

    async def dial_back(self, peer: str, addr: str) -> None:
        """The same from a fresh port, for one moment: nothing else is done with it. Raises `PeerUnreachable`."""

    async def punch(self, addr: str, seconds: float) -> None:
        """Send packets that mean nothing from our listening socket, so that a NAT on our side lets answers in."""

    def announce(self, addrs: Sequence[str]) -> None:
        """Be known under these addresses beside our own from now on: relayed ones, or where a NAT lets others in."""
