"""Where tests listen: on loopback, over each carrier, and over IPv6 where the machine has it."""

from __future__ import annotations

import socket
from typing import Final

import pytest

__all__ = ["CARRIERS", "CARRIERS_AND_FAMILIES", "QUIC", "TCP", "needs_ip6"]

QUIC: Final = "/ip4/127.0.0.1/udp/0/quic-v1"
TCP: Final = "/ip4/127.0.0.1/tcp/0"


def _has_ip6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ip6: Final = pytest.mark.skipif(not _has_ip6(), reason="this machine has no ::1")

CARRIERS: Final = [pytest.param(QUIC, id="quic"), pytest.param(TCP, id="tcp")]
CARRIERS_AND_FAMILIES: Final = [
    *CARRIERS,
    pytest.param("/ip6/::1/udp/0/quic-v1", id="quic-ip6", marks=needs_ip6),
    pytest.param("/ip6/::1/tcp/0", id="tcp-ip6", marks=needs_ip6),
]
