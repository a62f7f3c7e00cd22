"""Two private networks behind NATs and a public one between them, in network namespaces of this machine. Linux, root.

Each NAT is one of three kinds: `cone` (full cone: one outside port, open to everybody), `restricted` (one outside port,
open to those that were sent something: a home router) and `symmetric` (another random port towards each destination).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["KINDS", "PORT", "Kind", "Lab", "Place", "nat_lab", "why_no_lab"]

Kind = Literal["cone", "restricted", "symmetric"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PORT = 4001
"""Where nodes in a place listen; a full cone passes it through."""
COMMAND_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Place:
    """A machine of the lab.

    Attributes:
        host: its own IP address.
        outside: where the public network sees it.
    """

    namespace: str
    host: str
    outside: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command to run it there."""
        return ("ip", "netns", "exec", self.namespace)


@dataclass(frozen=True, slots=True)
class Lab:
    """`boot` and `client` have public addresses; `a` and `b` are each behind a NAT of their own."""

    boot: Place
    client: Place
    a: Place
    b: Place


def why_no_lab() -> str | None:
    """Why a lab cannot be had on this machine; None when it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"there is no `{tool}` command"
    try:
        with nat_lab("cone", "symmetric"):
            return None
    except OSError as error:
        return f"this machine makes no network namespaces with NAT: {error}"


@contextmanager
def nat_lab(kind_a: Kind, kind_b: Kind) -> Iterator[Lab]:
    """A lab for as long as the block runs; the caller ends what it started in it. Raises `OSError`."""
    tag = f"swn{os.getpid()}"
    lab = Lab(
        boot=Place(f"{tag}-boot", "203.0.113.1", "203.0.113.1"),
        client=Place(f"{tag}-client", "203.0.113.2", "203.0.113.2"),
        a=Place(f"{tag}-a", "10.77.1.2", "203.0.113.10"),
        b=Place(f"{tag}-b", "10.77.2.2", "203.0.113.20"),
    )
    made: list[str] = []
    try:
        _add(f"{tag}-net", made)
        _in(f"{tag}-net", "ip link add br0 type bridge", "ip link set br0 up")
        for place in (lab.boot, lab.client):
            _add(place.namespace, made)
            _cable(f"{tag}-net", place.namespace, "wan", f"{place.host}/24", bridge=True)
        for name, place, kind in (("nata", lab.a, kind_a), ("natb", lab.b, kind_b)):
            _add(f"{tag}-{name}", made)
            _add(place.namespace, made)
            _router(f"{tag}-net", f"{tag}-{name}", place, kind)
        yield lab
    finally:
        for namespace in reversed(made):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def _router(net: str, router: str, place: Place, kind: Kind) -> None:
    inside = place.host.rpartition(".")[0] + ".1"
    _cable(net, router, "wan", f"{place.outside}/24", bridge=True)
    _cable(router, place.namespace, "eth0", f"{place.host}/24", near=("lan", f"{inside}/24"))
    _in(place.namespace, f"ip route add default via {inside}")
    _in(router, "sysctl -qw net.ipv4.ip_forward=1")
    _run(["ip", "netns", "exec", router, "nft", "-f", "-"], _rules(kind, place))


def _rules(kind: Kind, place: Place) -> str:
    """What the router does. What nobody inside asked for is dropped, so that it leaves no trace in the NAT's table."""
    lets_in = f"iifname wan meta l4proto {{ tcp, udp }} th dport {PORT} dnat ip to {place.host}"
    keeps_port = f"oifname wan meta l4proto {{ tcp, udp }} th sport {PORT} snat ip to {place.outside}:{PORT}"
    gives_port = "oifname wan masquerade" + (" random,fully-random" if kind == "symmetric" else "")
    return f"""
table ip nat {{
    chain before {{
        type nat hook prerouting priority -100
        {lets_in if kind == "cone" else ""}
    }}
    chain behind {{
        type nat hook postrouting priority 100
        {keeps_port if kind == "cone" else ""}
        {gives_port}
    }}
}}
table ip filter {{
    chain itself {{
        type filter hook input priority 0
        iifname wan ct state new drop
    }}
    chain through {{
        type filter hook forward priority 0
        iifname wan ct state established,related accept
        iifname wan ct status dnat accept
        iifname wan drop
    }}
}}
"""


def _add(namespace: str, made: list[str]) -> None:
    _run(["ip", "netns", "add", namespace])
    made.append(namespace)
    _in(namespace, "ip link set lo up")


def _cable(
    one: str, other: str, far: str, address: str, *, bridge: bool = False, near: tuple[str, str] | None = None
) -> None:
    """A cable from namespace `one` to `other`, where its end is called `far`."""
    end = f"to{other.rpartition('-')[2]}" if near is None else near[0]
    _in(one, f"ip link add {end} type veth peer name {far} netns {other}", f"ip link set {end} up")
    if bridge:
        _in(one, f"ip link set {end} master br0")
    if near is not None:
        _in(one, f"ip addr add {near[1]} dev {end}")
    _in(other, f"ip addr add {address} dev {far}", f"ip link set {far} up")


def _in(namespace: str, *commands: str) -> None:
    for command in commands:
        _run(["ip", "netns", "exec", namespace, *command.split()])


def _run(words: list[str], text: str | None = None) -> None:
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"`{' '.join(words)}` does not end") from None
    if done.returncode != 0:
        raise OSError(f"`{' '.join(words)}`: {done.stderr.strip() or done.returncode}")
