"""What can be told of our own reach from what others say, and whom we let aim our packets."""

from __future__ import annotations

import pytest

from swarmnode.errors import BadInput
from swarmnode.node.identity import create_identity
from swarmnode.node.net.addresses import dialable, peer_at
from swarmnode.node.net.circuits import Circuit, host_of, is_private, parse_circuit, port_of, transport_of, without_peer
from swarmnode.node.net.nat.reachability import (
    MAX_DIAL_BACK_ADDRS,
    VERDICT_SECONDS,
    Verdict,
    behind_nat,
    dial_back_addrs,
    judge,
    mapping,
    presumed_addrs,
    punch_addrs,
)

QUIC = "/ip4/{}/udp/{}/quic-v1"
OURS = (QUIC.format("10.0.0.2", 4001), "/ip4/10.0.0.2/tcp/4001")
PEER, RELAY = create_identity().peer, create_identity().peer


def test_one_verdict_is_enough_the_majority_counts_and_a_tie_is_taken_as_closed() -> None:
    def verdicts(*reached: bool) -> dict[str, Verdict]:
        return {str(number): Verdict(each, 100.0) for number, each in enumerate(reached)}

    assert judge({}, 100.0) == "unknown"
    assert judge(verdicts(True), 100.0) == "open"
    assert judge(verdicts(False), 100.0) == "closed"
    assert judge(verdicts(True, False), 100.0) == "closed"
    assert judge(verdicts(True, True, False), 100.0) == "open"
    assert judge(verdicts(True), 100.0 + VERDICT_SECONDS) == "unknown"


def test_who_is_seen_elsewhere_than_it_is_stands_behind_a_nat() -> None:
    assert behind_nat(OURS, [QUIC.format("203.0.113.7", 1)])
    assert not behind_nat(OURS, [QUIC.format("10.0.0.2", 1)])
    assert not behind_nat(OURS, [])


def test_a_tcp_connections_own_port_is_nobodys_address() -> None:
    seen = ["/ip4/203.0.113.7/tcp/50123", QUIC.format("203.0.113.7", 4001)]
    assert presumed_addrs(OURS, seen) == [
        "/ip4/203.0.113.7/udp/4001/quic-v1",
        "/ip4/203.0.113.7/tcp/4001",
    ]
    assert len(presumed_addrs([QUIC.format("10.0.0.2", n) for n in range(1, 20)], seen)) == MAX_DIAL_BACK_ADDRS
    assert punch_addrs(seen) == [QUIC.format("203.0.113.7", 4001)]
    assert punch_addrs(["/dns4/example.com/udp/1/quic-v1", QUIC.format("203.0.113.7", 0)]) == []
    assert punch_addrs([QUIC.format("192.168.1.2", 4001), QUIC.format("127.0.0.1", 1)]) == []


def test_nobody_aims_our_packets_at_others() -> None:
    seen = [QUIC.format("203.0.113.7", 5)]
    asked = [
        QUIC.format("203.0.113.7", 4001),
        QUIC.format("203.0.113.7", 4001),
        QUIC.format("198.51.100.9", 4001),
        "/dns4/203.0.113.7.example.com/udp/1/quic-v1",
        "/ip4/203.0.113.7/tcp/0",
        f"/ip4/203.0.113.7/tcp/1/p2p/{RELAY}/p2p-circuit",
        "nonsense",
        "",
    ]
    assert dial_back_addrs(asked, seen) == [QUIC.format("203.0.113.7", 4001)]
    assert dial_back_addrs(asked, []) == []
    many = [QUIC.format("203.0.113.7", port) for port in range(1, 100)]
    assert len(dial_back_addrs(many, seen)) == MAX_DIAL_BACK_ADDRS


def test_a_nat_whose_ports_vary_is_told_from_one_whose_do_not() -> None:
    one, other = QUIC.format("203.0.113.7", 4001), QUIC.format("203.0.113.7", 4002)
    assert mapping([one]) == "unknown"
    assert mapping([one, one]) == "same"
    assert mapping([one, other, one]) == "varies"
    assert mapping([one, "/ip4/203.0.113.7/tcp/1"]) == "unknown"


def test_relayed_addresses_are_read_and_nonsense_is_refused() -> None:
    at = f"/ip4/203.0.113.1/tcp/4001/p2p/{RELAY}/p2p-circuit"
    assert parse_circuit(at) == (Circuit(RELAY, "/ip4/203.0.113.1/tcp/4001"), None)
    assert parse_circuit(f"{at}/p2p/{PEER}") == (Circuit(RELAY, "/ip4/203.0.113.1/tcp/4001"), PEER)
    assert str(Circuit(RELAY, "/ip4/203.0.113.1/tcp/4001")) == at
    assert parse_circuit("/ip4/203.0.113.1/tcp/4001") is None
    assert peer_at(f"{at}/p2p/{PEER}") == PEER
    assert peer_at(f"/ip4/203.0.113.1/tcp/4001/p2p/{PEER}") == PEER
    for bad in (
        "/p2p-circuit",
        f"/p2p/{RELAY}/p2p-circuit",
        f"{at}/p2p/nobody",
        f"{at}/tcp/1",
        f"{at}{at}",
        "/ip4/203.0.113.1/tcp/4001/p2p/nobody/p2p-circuit",
    ):
        with pytest.raises(BadInput):
            parse_circuit(bad)


def test_relays_are_dialled_last_and_never_to_reach_themselves() -> None:
    relayed = f"/ip4/203.0.113.1/tcp/4001/p2p/{RELAY}/p2p-circuit"
    direct = "/ip4/203.0.113.9/tcp/1"
    itself = f"/ip4/203.0.113.1/tcp/4001/p2p/{PEER}/p2p-circuit"
    found = [str(each) for each in dialable([relayed, itself, f"{relayed}/p2p/{RELAY}", direct], PEER)]
    assert found == [direct, relayed]


def test_what_an_address_says_of_itself() -> None:
    assert without_peer(f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}") == "/ip4/1.2.3.4/tcp/1"
    assert without_peer(f"/ip4/1.2.3.4/tcp/1/p2p/{RELAY}/p2p-circuit") == f"/ip4/1.2.3.4/tcp/1/p2p/{RELAY}/p2p-circuit"
    assert without_peer("/ip4/1.2.3.4/tcp/1") == "/ip4/1.2.3.4/tcp/1"
    assert (host_of(OURS[0]), port_of(OURS[0]), transport_of(OURS[0])) == ("10.0.0.2", 4001, "quic-v1")
    assert (host_of("x"), port_of("x"), transport_of("x")) == ("", 0, "")
    assert transport_of(OURS[1]) == "tcp"
    for private in ("10.1.2.3", "192.168.0.1", "172.31.0.1", "127.0.0.1", "169.254.1.1", "100.64.0.1"):
        assert is_private(f"/ip4/{private}/tcp/1")
    for private in ("::1", "fe80::1", "fd00::1"):
        assert is_private(f"/ip6/{private}/tcp/1")
    for public in ("/ip4/203.0.113.1/tcp/1", "/ip4/172.32.0.1/tcp/1", "/ip6/2001:db8::1/tcp/1", "/dns4/a.b/tcp/1"):
        assert not is_private(public)
