"""Where a node listens by default, with and without IPv6, and what follows from having addresses of both families."""

from __future__ import annotations

import logging

import ifaddr
import pytest

from support.loopback import needs_ip6
from swarmnode.node.defaults import DEFAULT_LISTEN
from swarmnode.node.identity import create_identity
from swarmnode.node.net.addresses import dialable, without_missing_family
from swarmnode.node.net.circuits import holder_of
from swarmnode.node.net.host import open_host
from swarmnode.node.net.nat.reachability import presumed_addrs


def adapters(*hosts: str) -> list[ifaddr.Adapter]:
    """One network interface with these addresses."""
    ips = [ifaddr.IP((host, 0, 0) if ":" in host else host, 24, "eth0") for host in hosts]
    return [ifaddr.Adapter("eth0", "eth0", ips)]


async def test_both_families_are_listened_on_where_the_machine_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters("192.0.2.7", "2001:db8::7", "fe80::7"))
    assert without_missing_family(DEFAULT_LISTEN) == list(DEFAULT_LISTEN)


@needs_ip6
async def test_one_joins_by_an_address_of_either_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters("2001:db8::7"))
    async with open_host(create_identity(), listen=DEFAULT_LISTEN) as network:
        assert [addr.split("/")[1:4] for addr in network.addrs] == [
            ["ip4", "127.0.0.1", "udp"],
            ["ip4", "127.0.0.1", "tcp"],
            ["ip6", "2001:db8::7", "udp"],
            ["ip6", "2001:db8::7", "tcp"],
        ]
        for addr in network.addrs:
            here = addr.replace("2001:db8::7", "::1")  # the wildcard takes that in, and it is there to be dialled
            async with open_host(create_identity(), listen=()) as guest:
                assert await guest.connect(here) == network.peer


async def test_a_machine_without_ip6_is_not_troubled_with_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters("192.0.2.7", "::1", "fe80::7"))
    caplog.set_level(logging.INFO, logger="swarmnode")
    async with open_host(create_identity(), listen=DEFAULT_LISTEN) as network:
        assert [addr.split("/")[1:4] for addr in network.addrs] == [
            ["ip4", "192.0.2.7", "udp"],
            ["ip4", "192.0.2.7", "tcp"],
        ]
    assert not caplog.records
    alone = ["/ip6/::/udp/0/quic-v1"]  # that was asked for: it must come or fail
    assert without_missing_family(alone) == alone
    assert without_missing_family(["/ip6/::1/tcp/0", "/ip4/127.0.0.1/tcp/0"]) == [
        "/ip6/::1/tcp/0",
        "/ip4/127.0.0.1/tcp/0",
    ]


def test_both_families_of_a_peer_are_dialled_and_quic_first() -> None:
    peer = create_identity().peer
    claimed = [
        "/ip4/192.0.2.7/udp/1/quic-v1",
        "/ip4/192.0.2.7/tcp/1",
        "/ip6/2001:db8::7/udp/1/quic-v1",
        "/ip6/::1/tcp/1",
    ]
    assert [str(each) for each in dialable(claimed, peer)] == [claimed[0], claimed[2], claimed[1], claimed[3]]


def test_where_we_are_seen_over_one_family_says_nothing_of_the_other() -> None:
    listens = ["/ip4/10.0.0.2/udp/4001/quic-v1", "/ip6/fd00::2/udp/4002/quic-v1"]
    seen = ["/ip4/203.0.113.7/tcp/50123", "/ip6/2001:db8::7/tcp/50124"]
    assert presumed_addrs(listens, seen) == ["/ip4/203.0.113.7/udp/4001/quic-v1", "/ip6/2001:db8::7/udp/4002/quic-v1"]


def test_a_machine_with_a_whole_ip6_prefix_is_one_holder() -> None:
    assert holder_of("/ip6/2001:db8::7/tcp/1") == holder_of("/ip6/2001:db8::ffff:8/udp/2/quic-v1")
    assert holder_of("/ip6/2001:db8::7/tcp/1") != holder_of("/ip6/2001:db8:0:1::7/tcp/1")
    assert holder_of("/ip4/192.0.2.7/tcp/1") == "192.0.2.7"
    assert holder_of("/dns4/example.com/tcp/1") == "example.com"
