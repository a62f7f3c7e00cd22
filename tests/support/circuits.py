"""Awaiting that a relay has nothing left to carry."""

from __future__ import annotations

import pytest
import trio

from swarmnode.node.net.nat.ledger import Ledger

__all__ = ["circuits_end"]


def circuits_end(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """An event that is set as soon as the last of a relay's circuits has ended."""
    ended, end = trio.Event(), ledger.end

    def note(source: str, target: str) -> None:
        end(source, target)
        if ledger.circuits == 0:
            ended.set()

    monkeypatch.setattr(ledger, "end", note)
    return ended
