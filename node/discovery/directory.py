"""Where servers are announced and found: their signed records, kept by the peers closest to the keys they belong to.

Decisions are made in `announcing.py` and `finding.py`, bytes exchanged in `records.py`. Knows no libp2p.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import trio

from swarmnode.errors import PeerBusy, PeerFault, PeerRefused, ProtocolViolation, SwarmnodeError
from swarmnode.node.net.metric import closest
from swarmnode.node.net.network import Network, PeerAddrs
from swarmnode.protocols.directory import (
    AgedRecord,
    Announce,
    Announced,
    DirectoryMessage,
    Find,
    Found,
    GetInfo,
    Info,
    Refused,
    Verdict,
)
from swarmnode.protocols.ids import INFO, RECORDS, ModelId
from swarmnode.protocols.keys import INDEX_KEY, bucket_keys, home_key, model_key
from swarmnode.protocols.limits import MAX_ANNOUNCED_RECORDS
from swarmnode.protocols.peers import peer_to_bytes
from swarmnode.protocols.records import ServerRecord, open_record, sign_record
from swarmnode.protocols.store import RecordStore

from .announcing import ClosestPeers, HandOn, next_sequence
from .finding import Merge, newest_of
from .records import PEER_SECONDS, Responder, request

__all__ = ["Directory"]

COPIES = 8
"""How many of the peers closest to a key keep its records."""
SPARE_COPIES = 2
"""So many more are asked and told, as some of those we know may be dead."""
ASKED_AT_ONCE = 4
HEDGE_SECONDS = 0.5
"""While an answer is missing for so long, one more peer is asked."""
REFRESH_SECONDS = 15.0
HAND_ON_SECONDS = 10.0
CONFIRM_SECONDS = 5.0
LEAVE_SECONDS = 1.0
"""What saying good-bye may take: the last record, and handing on what we keep."""
LAST_RECORD_SECONDS = 1.0
"""The lifetime of the record that ends a server's others."""
MAX_ANNOUNCING = 32
"""Announcements under way at a time."""
SEQUENCE_TRIES = 3
BUSY_TRIES = 2
BUSY_SECONDS = 1.0

MakeRecord = Callable[[int], ServerRecord]

_log = logging.getLogger("swarmnode.directory")


class Directory:
    """One node's part in the directory.

    Args:
        network: where the peers are.
        first_sequence: the sequence our records start with. A clock makes a good one, since a server that restarts
            then goes on above its older records; a wrong clock only costs one more round.
        copies: how many peers keep a key's records.
    """

    def __init__(self, network: Network, *, first_sequence: int | None = None, copies: int = COPIES) -> None:
        self._network = network
        self._copies = copies
        self._store = RecordStore(home=home_key(peer_to_bytes(network.peer)))
        self._closest = ClosestPeers()
        self._hand_on = HandOn(network.peer)
        self._sequence = first_sequence if first_sequence is not None else _clock_milliseconds()
        self._make_record: MakeRecord | None = None
        self._last_record: ServerRecord | None = None
        self._crowded = False
        self._changed = trio.Event()
        self._announced = trio.Event()
        self._announcing = trio.CapacityLimiter(MAX_ANNOUNCING)
        network.handle(RECORDS, Responder(self._answer, trio.current_time))
        network.handle(INFO, Responder(self._answer_info, trio.current_time))

    # Ours.

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Keep our record announced and other peers' where they belong, for ever; say good-bye when cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_hand_on)
                task_status.started()
                await self._run_announcing()
        finally:
            with trio.move_on_after(LEAVE_SECONDS) as scope:
                scope.shield = True
                await self._leave()

    def publish(self, make_record: MakeRecord | None) -> None:
        """Announce this from now on, at once and every 15 s; None announces nothing more.

        `make_record` is called with a sequence whenever a record is wanted: it says what is true at that moment.
        """
        self._make_record = make_record
        self._announced = trio.Event()
        self._changed.set()

    async def announced(self) -> None:
        """Wait until what was published last has reached the peers that keep it."""
        await self._announced.wait()

    async def find_servers(self, model_name: str, num_blocks: int | None = None) -> list[ServerRecord]:
        """The servers of a model, each by its newest record, in order of their blocks. Nobody has confirmed them yet.

        Args:
            num_blocks: how many blocks the model has, where that is known.
        """
        merge = await self._find(model_key(model_name))
        found = merge.records
        if merge.crowded:
            blocks = num_blocks or max((record.num_blocks for record in found), default=0)
            merges: list[Merge] = []

            async def find(key: bytes) -> None:
                merges.append(await self._find(key))

            async with trio.open_nursery() as nursery:
                for key in bucket_keys(model_name, 0, blocks):
                    nursery.start_soon(find, key)
            found = newest_of(record for each in (merge, *merges) for record in each.records)
        return [record for record in found if record.model.name == model_name]

    async def find_models(self) -> list[tuple[ModelId, int]]:
        """The models that somebody says it serves, and how many blocks each has."""
        merge = await self._find(INDEX_KEY)
        return sorted({(record.model, record.num_blocks) for record in merge.records}, key=lambda each: each[0].name)

    async def confirm(self, record: ServerRecord) -> ServerRecord:
        """What a server says of itself at this moment.

        Raises:
            PeerUnreachable, PeerLost: it is not there.
            PeerRefused: it serves nothing now.
            ProtocolViolation: what it says is not a record of its own.
        """
        if record.peer == self._network.peer and self._make_record is not None:
            await trio.lowlevel.checkpoint()
            return self._make_record(self._sequence)
        answer = await request(self._network, INFO, PeerAddrs(record.peer, record.addrs), GetInfo(), CONFIRM_SECONDS)
        if not isinstance(answer, Info):
            raise ProtocolViolation(f"{record.peer} answered something else than it was asked.", peer=record.peer)
        if answer.record is None:
            raise PeerRefused(f"{record.peer} serves nothing now.", peer=record.peer)
        try:
            current = open_record(answer.record)
        except ProtocolViolation as violation:
            raise ProtocolViolation(violation.message, peer=record.peer) from violation
        if current.peer != record.peer:
            raise ProtocolViolation(f"{record.peer} answered with another server's record.", peer=record.peer)
        return current

    # Announcing.

    async def _run_announcing(self) -> None:
        while True:
            self._changed = trio.Event()
            make_record, done = self._make_record, self._announced
            if make_record is not None:
                try:
                    await self._announce_own(make_record)
                except SwarmnodeError as error:
                    _log.warning("our record could not be announced: %s", error.message)
            elif self._last_record is not None:
                await self._withdraw(self._last_record)
            done.set()
            with trio.move_on_after(REFRESH_SECONDS if self._make_record is not None else float("inf")):
                await self._changed.wait()

    async def _announce_own(self, make_record: MakeRecord) -> None:
        for _ in range(SEQUENCE_TRIES):
            self._sequence += 1
            record = self._last_record = make_record(self._sequence)
            data = sign_record(record, self._network.sign)
            name = record.model.name
            model, index = model_key(name), INDEX_KEY
            buckets = bucket_keys(name, record.start, record.end)
            verdicts = await self._announce((model, index, *(buckets if self._crowded else ())), data)
            crowded = any(verdict.crowded for verdict in verdicts.get(model, ()))
            if crowded and not self._crowded:
                verdicts |= await self._announce(buckets, data)
            self._crowded = crowded
            newer = next_sequence(self._sequence, (verdict for each in verdicts.values() for verdict in each))
            if newer is None:
                return
            self._sequence = newer - 1

    async def _withdraw(self, record: ServerRecord) -> None:
        """Replace our record by one that ends at once."""
        self._last_record = None
        self._sequence += 1
        last = _ending(record, self._sequence)
        keys = [model_key(record.model.name), INDEX_KEY]
        if self._crowded:
            keys += bucket_keys(record.model.name, record.start, record.end)
        await self._announce(keys, sign_record(last, self._network.sign))

    async def _announce(self, keys: Iterable[bytes], data: bytes) -> dict[bytes, list[Verdict]]:
        """Give a record to the peers closest to each key, and say what they made of it."""
        verdicts: dict[bytes, list[Verdict]] = {}

        async def announce_to(key: bytes, peer: PeerAddrs) -> None:
            verdicts[key] += await self._give(key, peer, [(data, 0.0)])

        async def announce(key: bytes) -> None:
            peers = await self._closest_peers(key)
            if len(peers) < self._copies or any(each.peer == self._network.peer for each in peers):
                verdicts[key].append(self._store.offer(key, data, 0.0, trio.current_time()))
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    if peer.peer != self._network.peer:
                        nursery.start_soon(announce_to, key, peer)

        async with trio.open_nursery() as nursery:
            for key in keys:
                verdicts[key] = []
                nursery.start_soon(announce, key)
        return verdicts

    async def _give(self, key: bytes, peer: PeerAddrs, records: Sequence[AgedRecord]) -> tuple[Verdict, ...]:
        """Announce records to one peer; no verdicts when it cannot be asked."""
        async with self._announcing:
            try:
                answer = await self._request_patiently(peer, Announce(key, tuple(records)))
            except PeerFault as fault:
                _log.debug("%s took no record: %s", peer.peer, fault.message)
                self._closest.failed(key)
                return ()
        return answer.verdicts if isinstance(answer, Announced) else ()

    async def _request_patiently(self, peer: PeerAddrs, message: DirectoryMessage) -> DirectoryMessage:
        """Ask, and ask again while the peer is busy: servers that refresh at the same moment meet there."""
        for _ in range(BUSY_TRIES):
            try:
                return await request(self._network, RECORDS, peer, message, PEER_SECONDS)
            except PeerBusy:
                await trio.sleep(BUSY_SECONDS * (0.5 + random.random()))
        return await request(self._network, RECORDS, peer, message, PEER_SECONDS)

    # Handing on.

    async def _run_hand_on(self) -> None:
        while True:
            await trio.sleep(HAND_ON_SECONDS)
            now = trio.current_time()
            self._store.expire(now)
            keys = self._store.keys()
            self._hand_on.forget_all_but(keys)
            async with trio.open_nursery() as nursery:
                for key in keys:
                    near = self._network.known_closest(key, self._copies)
                    for peer in self._hand_on.due(key, near):
                        nursery.start_soon(self._hand_to, key, peer, near)

    async def _hand_to(self, key: bytes, peer: PeerAddrs, near: Sequence[PeerAddrs]) -> None:
        records = self._store.find(key, trio.current_time()).records
        for start in range(0, len(records), MAX_ANNOUNCED_RECORDS):
            if not await self._give(key, peer, records[start : start + MAX_ANNOUNCED_RECORDS]):
                return
        self._hand_on.given(key, peer.peer, near)

    async def _leave(self) -> None:
        """End our own record and give those of others to the peers that are closest without us."""
        async with trio.open_nursery() as nursery:
            if self._last_record is not None:
                nursery.start_soon(self._withdraw, self._last_record)
            keys = self._store.keys()
            for key in keys:
                near = self._network.known_closest(key, self._copies + 1)
                for peer in self._hand_on.due(key, near):
                    nursery.start_soon(self._hand_to, key, peer, near)

    # Finding.

    async def _find(self, key: bytes) -> Merge:
        """What the peers closest to a key keep under it, as one."""
        for _ in range(2):
            held = self._store.find(key, trio.current_time())
            peers = [each for each in await self._closest_peers(key) if each.peer != self._network.peer]
            merge = Merge(key)
            merge.add(held.records, crowded=held.crowded)
            if not peers or await self._ask(key, peers, merge):
                break  # otherwise those who were closest have gone: look again
        return merge

    async def _ask(self, key: bytes, peers: Iterable[PeerAddrs], merge: Merge) -> bool:
        """Ask peers side by side until they agree; a slow or dead one delays nobody. False when nobody answered."""
        waiting = iter(peers)
        done = trio.Event()
        under_way = 0
        answered = False

        async def ask(peer: PeerAddrs) -> None:
            nonlocal under_way, answered
            try:
                found = await request(self._network, RECORDS, peer, Find(key), PEER_SECONDS)
            except PeerFault:
                self._closest.failed(key)
            else:
                if isinstance(found, Found):
                    answered = True
                    merge.add(found.records, crowded=found.crowded)
            under_way -= 1
            if merge.enough or (not ask_next() and not under_way):
                done.set()

        def ask_next() -> bool:
            nonlocal under_way
            if (peer := next(waiting, None)) is None:
                return False
            under_way += 1
            nursery.start_soon(ask, peer)
            return True

        async with trio.open_nursery() as nursery:
            asked = [ask_next() for _ in range(ASKED_AT_ONCE)]
            while any(asked) and not done.is_set():
                with trio.move_on_after(HEDGE_SECONDS):
                    await done.wait()
                if not done.is_set():
                    ask_next()
            nursery.cancel_scope.cancel()
        return answered

    async def _closest_peers(self, key: bytes) -> Sequence[PeerAddrs]:
        """The peers closest to a key: those of a look-up not too long ago, and any newcomer that we know of."""
        now = trio.current_time()
        found = self._closest.get(key, now)
        if found is None:
            found = tuple(await self._network.closest_peers(key, self._copies))
            self._closest.put(key, found, trio.current_time())
        known = {each.peer: each for each in (*self._network.known_closest(key, self._copies), *found)}
        return [known[peer] for peer in closest(key, known, self._copies + SPARE_COPIES)]

    # Answering.

    def _answer(self, peer: str, message: DirectoryMessage) -> DirectoryMessage:
        now = trio.current_time()
        if isinstance(message, Announce):
            return Announced(tuple(self._store.offer(message.key, data, age, now) for data, age in message.records))
        if isinstance(message, Find):
            return self._store.find(message.key, now)
        return Refused("protocol-violation", "That is not a request of this protocol.")

    def _answer_info(self, peer: str, message: DirectoryMessage) -> DirectoryMessage:
        if not isinstance(message, GetInfo):
            return Refused("protocol-violation", "That is not a request of this protocol.")
        if self._make_record is None:
            return Info(None)
        return Info(sign_record(self._make_record(self._sequence), self._network.sign))


def _ending(record: ServerRecord, sequence: int) -> ServerRecord:
    return replace(record, sequence=sequence, state="draining", lifetime_seconds=LAST_RECORD_SECONDS)


def _clock_milliseconds() -> int:
    return time.time_ns() // 1_000_000
