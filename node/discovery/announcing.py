"""What a node decides about records it keeps and announces: whom to ask again, whom to hand records to, how fast.

Pure: `now` is an argument, nothing is sent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from swarmnode.node.net.network import PeerAddrs
from swarmnode.protocols.directory import Verdict
from swarmnode.protocols.limits import MAX_SEQUENCE

__all__ = ["ClosestPeers", "HandOn", "Pace", "next_sequence"]

LOOKUP_LASTS_SECONDS = 60.0
"""How long the answer to "who is closest to this key" is used."""
LOOKUP_AGAIN_SECONDS = 5.0
"""After one of them failed, at the earliest after so long it is asked again."""
MAX_LOOKUPS = 512
HANDING_PEERS = 3
"""So many of the peers nearest to a key hand its records to a newcomer; the others trust them to."""
PACE_BURST = 200.0
PACE_PER_SECOND = 40.0
MAX_PACED_PEERS = 2048


class ClosestPeers:
    """Answers to look-ups, kept for a while."""

    def __init__(self) -> None:
        self._answers: OrderedDict[bytes, tuple[float, float, tuple[PeerAddrs, ...]]] = OrderedDict()

    def get(self, key: bytes, now: float) -> tuple[PeerAddrs, ...] | None:
        """Who was closest to a key, if that is still to be believed."""
        asked_at, until, peers = self._answers.get(key, (0.0, 0.0, ()))
        return peers if now < until and asked_at <= now else None

    def put(self, key: bytes, peers: Sequence[PeerAddrs], now: float) -> None:
        self._answers.pop(key, None)
        self._answers[key] = now, now + LOOKUP_LASTS_SECONDS, tuple(peers)
        if len(self._answers) > MAX_LOOKUPS:
            self._answers.popitem(last=False)

    def failed(self, key: bytes) -> None:
        """One of the peers did not answer: look up again soon."""
        if (answer := self._answers.get(key)) is not None:
            asked_at, until, peers = answer
            self._answers[key] = asked_at, min(until, asked_at + LOOKUP_AGAIN_SECONDS), peers


class HandOn:
    """Which peers have been given the records of a key, and who comes next.

    The owners refresh their records at the peers that they think closest, which may be a minute old news; so whoever
    keeps a key's records gives them to peers that have come closer since.
    """

    def __init__(self, us: str) -> None:
        self._us = us
        self._given: dict[bytes, set[str]] = {}

    def forget_all_but(self, keys: Iterable[bytes]) -> None:
        """Only these keys have records now."""
        kept = set(keys)
        self._given = {key: given for key, given in self._given.items() if key in kept}

    def due(self, key: bytes, closest: Sequence[PeerAddrs]) -> list[PeerAddrs]:
        """Of the peers now closest to a key, nearest first, those that we should give its records to."""
        given = self._given.get(key, set())
        holders = [each.peer for each in closest if each.peer == self._us or each.peer in given]
        if self._us in holders[HANDING_PEERS:]:
            return []
        return [each for each in closest if each.peer != self._us and each.peer not in given]

    def given(self, key: bytes, peer: str, closest: Sequence[PeerAddrs]) -> None:
        """A peer has them. What is known of peers no longer close is forgotten."""
        near = {each.peer for each in closest}
        self._given[key] = {peer, *self._given.get(key, ())} & near


class Pace:
    """How much one peer may ask of us: a burst, then a steady trickle, for a bounded number of peers."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, peer: str, now: float) -> bool:
        """Count one request; False when it is one too many."""
        left, since = self._left.pop(peer, (PACE_BURST, now))
        left = min(PACE_BURST, left + (now - since) * PACE_PER_SECOND)
        allowed = left >= 1
        self._left[peer] = left - 1 if allowed else left, now
        if len(self._left) > MAX_PACED_PEERS:
            self._left.popitem(last=False)
        return allowed


def next_sequence(ours: int, verdicts: Iterable[Verdict]) -> int | None:
    """The sequence to announce with instead, when somebody knows one that is not below ours; None when all is well.

    That happens after a restart with a clock set back. A peer may lie about it; following it to the end of the
    numbers would silence us for good.
    """
    known = [verdict.newest_sequence for verdict in verdicts if not verdict.stored]
    newest = max((each for each in known if each is not None and each < MAX_SEQUENCE // 2), default=-1)
    return newest + 1 if newest >= ours else None
