"""The servers of one model as they are now: found in the directory, confirmed by themselves, planned into a route."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

import trio

from swarmnode.errors import AdapterMissing, BlocksMissing, ModelMismatch, NoPeers, PeerFault
from swarmnode.node.adapters import choose_adapter
from swarmnode.node.defaults import FIND_SECONDS
from swarmnode.node.net.network import Network
from swarmnode.node.routes import Route, missing_blocks, plan_route
from swarmnode.protocols.adapters import AdapterId
from swarmnode.protocols.records import ModelId, ServerRecord

if TYPE_CHECKING:
    from swarmnode.node.discovery.directory import Directory

__all__ = ["Servers", "confirm_servers"]

CONFIRM_SECONDS = 6.0
"""A server that says nothing of itself for so long is left out."""

GRACE_SECONDS = 0.3
"""Once those that answered cover the model, the others get this long to be considered too."""

FRESH_SECONDS = 5.0
"""For so long what was found is used again without asking."""

MAX_CONFIRMED = 128
"""Servers asked at once; a model with more is covered by any so many of them, fittest first."""


class Servers:
    """Where to find the blocks of one model.

    Args:
        model: which weights exactly; servers of others are never used.
        num_blocks: how many blocks it has.
    """

    def __init__(self, network: Network, directory: Directory, model: ModelId, num_blocks: int) -> None:
        self._network = network
        self._directory = directory
        self._model = model
        self._num_blocks = num_blocks
        self._records: list[ServerRecord] = []
        self._found_at = float("-inf")

    async def plan(
        self, *, tokens: int, exclude: Collection[str] = (), adapter: str | AdapterId | None = None
    ) -> Route:
        """A route for a session that will hold `tokens`.

        Args:
            adapter: as for `choose_adapter`, or the very one.

        Raises:
            AdapterMissing, BadInput: as `choose_adapter`.
            NoPeers: we know nobody.
            ModelMismatch: only other weights of this name are served.
            BlocksMissing: naming the blocks.
        """
        way = partial(self._way, adapter, tokens=tokens, exclude=exclude)
        if adapter is None:
            return way(await self._fresh())
        try:
            return way(await self._fresh())
        except (AdapterMissing, BlocksMissing):
            self.forget()  # the servers that have it may be those that were not waited for
            return way(await self._fresh(patient=True))

    def forget(self) -> None:
        """Ask anew at the next plan."""
        self._found_at = float("-inf")

    def _way(
        self,
        adapter: str | AdapterId | None,
        records: Sequence[ServerRecord],
        *,
        tokens: int,
        exclude: Collection[str],
    ) -> Route:
        if isinstance(adapter, str):
            adapter = choose_adapter(records, adapter, self._num_blocks)
        return plan_route(records, self._num_blocks, exclude=exclude, tokens=tokens, adapter=adapter)

    async def _fresh(self, *, patient: bool = False) -> Sequence[ServerRecord]:
        if trio.current_time() - self._found_at > FRESH_SECONDS:
            found: list[ServerRecord] = []
            with trio.move_on_after(FIND_SECONDS):
                found = await self._directory.find_servers(self._model.name, self._num_blocks)
            own = [each for each in found if each.model == self._model]
            if not own:
                self._complain(found)
            self._records = await confirm_servers(self._directory, own, None if patient else self._num_blocks)
            self._found_at = trio.current_time()
        return self._records

    def _complain(self, found: Sequence[ServerRecord]) -> None:
        """Say why no server has this model."""
        ours = self._model
        if found:
            other = found[0].model
            raise ModelMismatch(
                f"The swarm serves {other.name} at revision {other.revision} ({other.digest.hex()[:12]}), "
                f"not {ours.revision} ({ours.digest.hex()[:12]}), which was loaded here.",
                hint=f"Load that revision (--revision {other.revision}), or serve yours.",
            )
        if not self._network.connected:
            raise NoPeers(
                "No peer is reachable, so nobody can run the model's blocks.",
                hint="Name a peer of the swarm with --join, or start servers with `swarmnode serve`.",
            )
        raise BlocksMissing(
            f"No server of the swarm holds {ours.name}: blocks 0:{self._num_blocks} of {self._num_blocks} "
            "have no live server.",
            hint=f"Serve it with `swarmnode serve {ours.name}`, or see with `swarmnode status` what there is.",
            span=(0, self._num_blocks),
        )


async def confirm_servers(
    directory: Directory, records: Sequence[ServerRecord], num_blocks: int | None = None
) -> list[ServerRecord]:
    """What the servers say of themselves now; those that do not answer, or now serve something else, are left out.

    Args:
        num_blocks: once so many are covered, the slower ones are not waited for; None waits for all.
    """
    confirmed: list[ServerRecord] = []

    async def confirm(record: ServerRecord, scope: trio.CancelScope) -> None:
        try:
            now = await directory.confirm(record)
        except PeerFault:
            return
        if now.model != record.model or now.num_blocks != record.num_blocks:
            return
        confirmed.append(now)
        if num_blocks is not None and not missing_blocks(
            [each for each in confirmed if each.state == "online"], num_blocks
        ):
            scope.deadline = min(scope.deadline, trio.current_time() + GRACE_SECONDS)

    chosen = sorted(records, key=lambda each: (each.state != "online", -each.decode_tokens_per_second))[:MAX_CONFIRMED]
    with trio.move_on_after(CONFIRM_SECONDS) as scope:
        async with trio.open_nursery() as nursery:
            for record in chosen:
                nursery.start_soon(partial(confirm, record, scope))
    return confirmed
