"""Two bare peers behind each kind of NAT: who reaches whom, how, and that a stream in use moves to the better way."""

from __future__ import annotations

import pytest

from swarmnode.node.bench.nat import measure
from swarmnode.node.bench.natlab import Kind

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("dialler", "server", "transport", "how"),
    [
        ("restricted", "restricted", "quic", "punched"),
        ("symmetric", "symmetric", "quic", "relayed"),
        pytest.param("symmetric", "cone", "quic", "direct", marks=SLOW),
        pytest.param("cone", "symmetric", "quic", "called back", marks=SLOW),
        pytest.param("restricted", "restricted", "tcp", "relayed", marks=SLOW),
    ],
)
def test_reached(dialler: Kind, server: Kind, transport: str, how: str) -> None:
    found = measure(dialler, server, transport)
    assert found["how"] == how, found
    assert found["server_is"] == ("open" if server == "cone" else "closed")
    assert found["stream_moved"] == (found["direct_after_seconds"] is not None)
