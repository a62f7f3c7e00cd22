"""Who reaches whom through which NATs, how, and how fast: two peers behind each pair of the three kinds.

Needs network namespaces (Linux, root). All of it runs on one machine, so there is no distance: times say what the
software costs, the kinds of NAT say what is possible at all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .natlab import KINDS, PORT, Kind, Lab, Place, nat_lab, why_no_lab

__all__ = ["measure", "run"]

LISTEN = {"quic": "/ip4/{}/udp/{}/quic-v1", "tcp": "/ip4/{}/tcp/{}"}


def run(argv: Sequence[str]) -> dict[str, object]:
    """Measure. Arguments: `--transport quic`, `--kinds cone restricted symmetric`."""
    parser = argparse.ArgumentParser(prog="scripts/bench nat", description=__doc__)
    parser.add_argument("--transport", choices=sorted(LISTEN), default="quic")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    asked = parser.parse_args(argv)
    if (why := why_no_lab()) is not None:
        return {"skipped": why}
    pairs = [(dialler, server) for server in asked.kinds for dialler in asked.kinds]
    found = []
    for dialler, server in pairs:
        found.append(measure(dialler, server, asked.transport))
        print(f"{dialler} to {server}: {found[-1]['how']}", file=sys.stderr, flush=True)
    return {"transport": asked.transport, "pairs": found}


def measure(dialler: Kind, server: Kind, transport: str) -> dict[str, Any]:
    """How a peer behind one NAT reaches a server behind another."""
    named: dict[str, object] = {"dialler_nat": dialler, "server_nat": server}
    with nat_lab(dialler, server) as lab:
        try:
            return {**named, **_reach(lab, LISTEN[transport])}
        except _Failed as failed:
            return {**named, "how": "not at all", "why": str(failed)}


def _reach(lab: Lab, listen: str) -> dict[str, Any]:
    with _peer(lab.boot, "boot", listen.format(lab.boot.host, PORT)) as boot:
        join = str(boot["addr"])
        with _peer(lab.b, "stand", listen.format("0.0.0.0", PORT), join) as server:
            aims = (server["peer"], *server["addrs"])
            with _peer(lab.a, "dial", listen.format("0.0.0.0", PORT), join, *aims) as dialled:
                known = round(float(server["known_after_seconds"]), 3)
                return {"server_is": server["reach"], "server_knew_after_seconds": known, **dialled}


class _Failed(Exception):
    """A peer ended before it said what it should."""


@contextmanager
def _peer(place: Place, *words: str) -> Iterator[dict[str, Any]]:
    """A peer of the bench that runs for as long as the block; what it said first."""
    command = [*place.prefix, sys.executable, "-m", f"{__package__}.natpeer", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                process.kill()
                assert process.stderr is not None
                raise _Failed(process.stderr.read().strip().splitlines()[-1])
            yield json.loads(line)
        finally:
            process.kill()
