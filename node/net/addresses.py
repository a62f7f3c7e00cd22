"""Multiaddrs that we can dial and listen on: `/ip4/…/udp/…/quic-v1`, `/ip4/…/tcp/…`; and listening sockets for them.

Knows no libp2p. A full address ends in `/p2p/` and the peer id of who listens there.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ifaddr
import trio

from swarmnode.errors import BadInput, PortInUse, ProtocolViolation
from swarmnode.protocols.peers import check_peer

from .circuits import Circuit, parse_circuit

__all__ = [
    "Endpoint",
    "dialable",
    "listen_socket",
    "listening_addrs",
    "parse_addr",
    "peer_at",
    "resolve",
    "without_missing_family",
]

LISTEN_BACKLOG = 1024
UDP_BUFFER_BYTES = 4 * 1024 * 1024
"""What the kernel is asked to hold for a UDP socket each way; it takes what it allows. Less loses bursts."""
MAX_DIALLED_ADDRS = 8
"""Of the addresses a peer claims, only so many are tried."""
MAX_DIALLED_CIRCUITS = 3
_ALL_IP6 = "/ip6/::/"
_FORMS = {"quic": "udp/{}/quic-v1", "tcp": "tcp/{}"}
_FAMILIES = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}
_NAMES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a socket listens.

    Attributes:
        kind: `ip4`, `ip6`, `dns`, `dns4` or `dns6`.
        host: an IP address or a name.
        port: 0 to 65535.
        transport: `quic` or `tcp`.
    """

    kind: str
    host: str
    port: int
    transport: str = "tcp"

    @property
    def family(self) -> socket.AddressFamily:
        return _FAMILIES.get(self.kind) or _NAMES[self.kind]

    def __str__(self) -> str:
        return f"/{self.kind}/{self.host}/" + _FORMS[self.transport].format(self.port)


def parse_addr(addr: str) -> tuple[Endpoint, str | None]:
    """The endpoint and, if it is there, the peer id of a multiaddr. Raises `BadInput`."""
    parts = addr.split("/")
    transport = "tcp"
    if parts[3:4] == ["udp"] and parts[5:6] == ["quic-v1"]:
        transport = "quic"
        del parts[5]
        parts[3] = "tcp"
    if len(parts) not in (5, 7) or parts[0] or parts[1] not in (*_FAMILIES, *_NAMES) or parts[3] != "tcp":
        raise _bad(addr, "it is not of the form /ip4/1.2.3.4/udp/4001/quic-v1 or /ip4/1.2.3.4/tcp/4001")
    kind, host, port = parts[1], parts[2], parts[4]
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 65536):
        raise _bad(addr, f"{port!r} is no port")
    try:
        if kind in _FAMILIES:
            host = str(ipaddress.IPv4Address(host) if kind == "ip4" else ipaddress.IPv6Address(host))
        elif not host or len(host) > 253:
            raise ValueError
    except ValueError:
        raise _bad(addr, f"{host!r} is no {kind} address") from None
    peer = None
    if len(parts) == 7:
        if parts[5] != "p2p":
            raise _bad(addr, "after the port comes /p2p/ and a peer id")
        try:
            peer = check_peer(parts[6])
        except ProtocolViolation as violation:
            raise _bad(addr, violation.message[0].lower() + violation.message[1:].rstrip(".")) from None
    return Endpoint(kind, host, int(port), transport), peer


def dialable(addrs: Iterable[str], peer: str) -> list[Endpoint | Circuit]:
    """What can be dialled of a peer's claimed addresses, no more than we try.

    QUIC comes first, loopback late, through relays last.
    """
    found: dict[Endpoint, None] = {}
    circuits: dict[Circuit, None] = {}
    for addr in addrs:
        try:
            if (relayed := parse_circuit(addr)) is not None:
                circuit, named = relayed
                if named in (None, peer) and circuit.relay != peer:
                    circuits[circuit] = None
                continue
            endpoint, named = parse_addr(addr)
        except BadInput:
            continue  # an address of a transport that we do not have, or rubbish
        if named in (None, peer) and endpoint.port:
            found[endpoint] = None
    return [
        *sorted(found, key=lambda each: (_is_loopback(each), each.transport))[:MAX_DIALLED_ADDRS],
        *list(circuits)[:MAX_DIALLED_CIRCUITS],
    ]


def peer_at(addr: str) -> str | None:
    """The peer that a full address names, relayed or not. Raises `BadInput`."""
    relayed = parse_circuit(addr)
    return relayed[1] if relayed is not None else parse_addr(addr)[1]


def without_missing_family(listen: Sequence[str]) -> list[str]:
    """Of several addresses to listen on, those that mean something here.

    All of a machine's IPv6 addresses are none where it has no IPv6, or nothing of it that others can use. What stands
    alone was wanted, and is kept.
    """
    kept = [addr for addr in listen if not addr.startswith(_ALL_IP6) or _interface_hosts("ip6")]
    return kept or list(listen)


def listen_socket(addr: str) -> socket.socket:
    """A non-blocking socket for a multiaddr, TCP listening, UDP bound. Raises `PortInUse`, `BadInput`."""
    endpoint, _ = parse_addr(addr)
    if endpoint.kind not in _FAMILIES:
        raise BadInput(f"Cannot listen on {addr}.", hint="Listen on an IP address, /ip4/0.0.0.0/tcp/0 for instance.")
    is_tcp = endpoint.transport == "tcp"
    sock = socket.socket(endpoint.family, socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM)
    try:
        if is_tcp:  # for UDP it would let two programs share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UDP_BUFFER_BYTES)
        if endpoint.kind == "ip6":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((endpoint.host, endpoint.port))
        if is_tcp:
            sock.listen(LISTEN_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"{addr} cannot be listened on: the port is in use.",
                hint="Stop the program that listens there, or choose another port with --listen (0 takes a free one).",
            ) from error
        raise BadInput(
            f"{addr} cannot be listened on: {error.strerror}.",
            hint="Listen on an address of this machine and a port above 1023 with --listen.",
        ) from error
    return sock


def listening_addrs(sock: socket.socket) -> list[str]:
    """Where others can reach a listening socket: a wildcard stands for the machine's addresses other than loopback."""
    host, port = sock.getsockname()[:2]
    kind = "ip4" if sock.family == socket.AF_INET else "ip6"
    hosts = [host]
    if ipaddress.ip_address(host).is_unspecified:
        hosts = _interface_hosts(kind) or ["127.0.0.1" if kind == "ip4" else "::1"]
    transport = "tcp" if sock.type == socket.SOCK_STREAM else "quic"
    return [str(Endpoint(kind, each, port, transport)) for each in hosts]


async def resolve(endpoint: Endpoint) -> str:
    """The IP address of an endpoint. Raises `OSError` for a name that has none."""
    if endpoint.kind in _FAMILIES:
        return endpoint.host
    found = await trio.socket.getaddrinfo(endpoint.host, endpoint.port, family=endpoint.family, type=socket.SOCK_DGRAM)
    return str(found[0][4][0])


def _interface_hosts(kind: str) -> list[str]:
    hosts = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            address = ipaddress.ip_address(host)
            right = address.version == (4 if kind == "ip4" else 6)
            if right and not (address.is_loopback or address.is_link_local or address.is_multicast):
                hosts.append(host)
    return hosts


def _is_loopback(endpoint: Endpoint) -> bool:
    return endpoint.kind in _FAMILIES and ipaddress.ip_address(endpoint.host).is_loopback


def _bad(addr: str, why: str) -> BadInput:
    return BadInput(
        f"{addr!r} is not an address that can be used: {why}.",
        hint="Addresses look like /ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3Koo…; a node prints its own when it starts.",
    )
