"""Whether others can dial us, from what they told: plain decisions over addresses seen and dial-backs tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from swarmnode.node.net.circuits import host_of, is_private, port_of, transport_of

__all__ = [
    "MAX_DIAL_BACK_ADDRS",
    "PUNCHABLE",
    "VERDICT_SECONDS",
    "Reach",
    "Verdict",
    "behind_nat",
    "dial_back_addrs",
    "judge",
    "mapping",
    "presumed_addrs",
    "punch_addrs",
]

Reach = Literal["unknown", "open", "closed"]
"""Nobody has tried; others can dial us; they cannot."""

VERDICT_SECONDS = 1800.0
"""What a peer found so long ago says nothing any more: NATs and firewalls change."""
MAX_DIAL_BACK_ADDRS = 4
"""We dial one peer at so many of the addresses that it asks for, and ask for no more."""
MAX_PUNCH_ADDRS = 3
"""Each side sends packets to so many addresses of the other at most."""
_IP = ("/ip4/", "/ip6/")
PUNCHABLE = "quic-v1"
"""The transport that packets from the listening socket open a NAT for."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one peer found when it dialled us."""

    reached: bool
    at: float


def judge(verdicts: Mapping[str, Verdict], now: float) -> Reach:
    """What the peers that tried lately say together.

    A small swarm has one peer to ask, so one is enough; of several the majority counts. On a tie we count as closed: a
    place on a relay that was not needed costs little, being out of reach costs everything.
    """
    fresh = [each.reached for each in verdicts.values() if now - each.at < VERDICT_SECONDS]
    if not fresh:
        return "unknown"
    return "open" if 2 * sum(fresh) > len(fresh) else "closed"


def behind_nat(listens: Collection[str], observed: Iterable[str]) -> bool:
    """Whether anybody sees us at an IP address that is not this machine's."""
    ours = {host_of(addr) for addr in listens}
    return any(host_of(addr) not in ours for addr in observed)


def presumed_addrs(listens: Collection[str], observed: Iterable[str]) -> list[str]:
    """Where we may be dialled from afar: where we are seen, and at the same host the ports we listen on."""
    found: dict[str, None] = {}
    for seen in Counter(observed).most_common():
        if transport_of(seen[0]) == PUNCHABLE:  # a TCP connection comes from a port that nobody listens on
            found[seen[0]] = None
        for own in listens:
            if own.split("/")[1] != seen[0].split("/")[1]:
                continue  # what we listen on over IPv6 says nothing of where we are seen over IPv4
            found[own.replace(f"/{host_of(own)}/", f"/{host_of(seen[0])}/", 1)] = None
    return list(found)[:MAX_DIAL_BACK_ADDRS]


def dial_back_addrs(asked: Iterable[str], seen: Iterable[str]) -> list[str]:
    """Of the addresses that a peer asks us to dial, those at the very IP addresses that we see it at.

    Anything else would let a stranger aim our packets at somebody else.
    """
    hosts = {host_of(addr) for addr in seen}
    fitting = [addr for addr in asked if host_of(addr) in hosts and "/p2p-circuit" not in addr and port_of(addr)]
    return list(dict.fromkeys(fitting))[:MAX_DIAL_BACK_ADDRS]


def mapping(observed: Iterable[str]) -> Literal["unknown", "same", "varies"]:
    """Whether our NAT gives us one port towards everybody; where it varies, nobody can foresee the next."""
    ports: dict[str, set[int]] = {}
    count = 0
    for addr in observed:
        if transport_of(addr) == PUNCHABLE:
            ports.setdefault(host_of(addr), set()).add(port_of(addr))
            count += 1
    if count < 2:
        return "unknown"
    return "varies" if any(len(each) > 1 for each in ports.values()) else "same"


def punch_addrs(observed: Iterable[str]) -> list[str]:
    """Where packets to us should go, most often seen first; private addresses mean nothing to others."""
    usable = [
        addr
        for addr in observed
        if transport_of(addr) == PUNCHABLE and addr.startswith(_IP) and port_of(addr) and not is_private(addr)
    ]
    return [addr for addr, _ in Counter(usable).most_common(MAX_PUNCH_ADDRS)]
