"""Relayed addresses (`…/p2p/<relay>/p2p-circuit/p2p/<peer>`) and what can be told of an address from its text.

Knows no libp2p and dials nothing.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from swarmnode.errors import BadInput, ProtocolViolation
from swarmnode.protocols.peers import check_peer

__all__ = [
    "MARK",
    "Circuit",
    "holder_of",
    "host_of",
    "is_private",
    "parse_circuit",
    "port_of",
    "transport_of",
    "without_peer",
]

MARK = "/p2p-circuit"
_PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        (
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",  # a provider's NAT (RFC 6598)
            "127.0.0.0/8",
            "169.254.0.0/16",
            "0.0.0.0/8",
            "::/127",
            "fc00::/7",
            "fe80::/10",
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Circuit:
    """A way to a peer through a relay.

    Attributes:
        relay: the relay's peer id.
        relay_addr: where the relay is, without its peer id.
    """

    relay: str
    relay_addr: str

    def __str__(self) -> str:
        return f"{self.relay_addr}/p2p/{self.relay}{MARK}"


def parse_circuit(addr: str) -> tuple[Circuit, str | None] | None:
    """The circuit and, if it is named, the peer behind it; None for an address that is not relayed.

    Raises:
        BadInput: it is relayed, but through what cannot be dialled.
    """
    head, mark, tail = addr.partition(MARK)
    if not mark or (tail and not tail.startswith("/")):
        return None
    relay_addr, named, relay = head.rpartition("/p2p/")
    peer = tail.removeprefix("/p2p/") if tail else None
    try:
        if not named or not relay_addr or "/p2p/" in relay_addr:
            raise ProtocolViolation("It does not say where the relay is.")
        return Circuit(check_peer(relay), relay_addr), check_peer(peer) if peer is not None else None
    except ProtocolViolation as violation:
        raise BadInput(
            f"{addr!r} is not an address that can be used: {violation.message[0].lower()}{violation.message[1:]}",
            hint="A relayed address looks like /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…/p2p-circuit/p2p/12D3Koo…",
        ) from None


def without_peer(addr: str) -> str:
    """An address without the peer that listens there; a relay's stays in it."""
    head, named, tail = addr.rpartition("/p2p/")
    return head if named and "/" not in tail else addr


def host_of(addr: str) -> str:
    """The IP address or name in a multiaddr."""
    parts = addr.split("/")
    return parts[2] if len(parts) > 2 else ""


def holder_of(addr: str) -> str:
    """What stands for one holder of addresses: an IPv4 address, the /64 of an IPv6 one, which one machine has whole."""
    host = host_of(addr)
    try:
        return str(ipaddress.IPv6Network((host, 64), strict=False))
    except ValueError:
        return host


def port_of(addr: str) -> int:
    """The port in a multiaddr; 0 when there is none."""
    parts = addr.split("/")
    return int(parts[4]) if len(parts) > 4 and parts[4].isdecimal() else 0


def transport_of(addr: str) -> str:
    """`tcp`, `quic-v1`, or whatever else comes last in an address that is not relayed and names no peer."""
    parts = addr.split("/")
    return parts[5] if len(parts) > 5 else parts[3] if len(parts) > 3 else ""


def is_private(addr: str) -> bool:
    """Whether only the same local network or machine can use this address."""
    try:
        ip = ipaddress.ip_address(host_of(addr))
    except ValueError:
        return False  # a name
    return any(ip.version == net.version and ip in net for net in _PRIVATE)
