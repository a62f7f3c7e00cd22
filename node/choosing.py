"""A server that chooses its own blocks: asks the swarm, decides by `placement.py`, and later looks whether to move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

import trio

from swarmnode.protocols.records import ModelId, ServerRecord

from .capacity import Need, Spread
from .client.servers import confirm_servers
from .discovery.directory import Directory
from .fitting import Fit
from .measured import Measured, SpanKey, network_of
from .net.network import Network
from .placement import (
    LOOK_SECONDS,
    Options,
    Patience,
    Share,
    Window,
    choose_window,
    coverage_of,
    settle,
    shares_of,
    should_move,
    typical_rate,
    worth,
)
from .server.serving import Serving

__all__ = ["Choice", "Chooser", "Why", "choice_of"]

ASK_SECONDS: Final = 8.0
"""How long the swarm may take to say who holds what; who has not answered by then is not waited for."""

ANNOUNCE_SECONDS: Final = 5.0
"""What has been announced is taken to be seen by others after so long at most."""

STATE_BYTES: Final = 1
"""On the way, a number of a hidden state takes about so many: what the codec `h8` makes of it."""

Why = Literal["asked", "all", "first", "gap", "thin"]
"""The blocks were named; all fit; nobody holds any; nobody else holds some of them; others hold all, these least."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a server is going to hold, and why.

    Attributes:
        servers: how many others hold or load blocks of the model, as far as is known.
        cache_tokens: how much cache there will be.
        need: what it takes of memory; None where that was not asked.
        whole_bytes: what all blocks would take at least.
        limit_bytes: what may be taken; None where nobody knows.
        spread: which device each block is on; None where there is but one, and room for all.
    """

    window: Window
    num_blocks: int
    why: Why
    cache_tokens: int
    servers: int = 0
    need: Need | None = None
    whole_bytes: int = 0
    limit_bytes: int | None = None
    spread: Spread | None = None


class Chooser:
    """Chooses for one server.

    Args:
        model: which weights exactly; servers of others do not count.
        fit: what fits here.
        key: what rates depend on, for any number of blocks.
        hidden_size: width of the hidden states, which have to get through the network.
    """

    def __init__(
        self,
        network: Network,
        directory: Directory,
        *,
        model: ModelId,
        fit: Fit,
        measured: Measured,
        key: SpanKey,
        hidden_size: int,
    ) -> None:
        self._network = network
        self._directory = directory
        self._model = model
        self._fit = fit
        self._measured = measured
        self._key = key
        self._hidden_size = hidden_size
        self._num_blocks = fit.task.footprint.num_blocks
        self._patience = Patience(network.peer)
        self._seen: frozenset[str] = frozenset()

    async def choose(self) -> Choice:
        """The blocks that the swarm needs most, as it is now."""
        records = await self._confirmed(await self._records())
        self._seen = frozenset(record.peer for record in records)
        others = self._shares(records)
        return self._choice(choose_window(coverage_of(others, self._num_blocks), self._options(records)), others)

    async def settle(self, chosen: Choice) -> Choice:
        """The same once our choice has been announced: others may have chosen at the same moment."""
        with trio.move_on_after(ANNOUNCE_SECONDS):
            await self._directory.announced()
        records = await self._records()
        options = self._options(records)
        newcomers = {each.peer for each in records if each.state == "joining"} - self._seen
        others = self._shares(records)
        window = settle(
            self._own(chosen.window, options.rate_of(chosen.window[1] - chosen.window[0])),
            options,
            [each for each in others if each.peer in newcomers],
            [each for each in others if each.peer not in newcomers],
            self._num_blocks,
        )
        return chosen if window == chosen.window else self._choice(window, others)

    async def elsewhere(self, serving: Serving) -> Choice:
        """Return when this server should hold other blocks, which it only does while nobody uses it."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            records = await self._records()
            self._note_network()
            wants = bool(self._network.connected) and not serving.in_use
            wants = wants and self._better(serving, records) is not None
            if not self._patience.is_over(wants, trio.current_time()):
                continue
            records = await self._confirmed(records)
            window = self._better(serving, records)
            if window is not None and not serving.in_use:
                self._seen = frozenset(record.peer for record in records)
                return self._choice(window, self._shares(records))

    async def _records(self) -> list[ServerRecord]:
        """What other servers of the model say of themselves, by the directory."""
        found: list[ServerRecord] = []
        with trio.move_on_after(ASK_SECONDS):
            found = await self._directory.find_servers(self._model.name, self._num_blocks)
        return [each for each in found if each.model == self._model and each.peer != self._network.peer]

    async def _confirmed(self, records: list[ServerRecord]) -> list[ServerRecord]:
        """Those of them that answer for themselves."""
        confirmed = await confirm_servers(self._directory, records)
        self._note_network()
        return confirmed

    def _better(self, serving: Serving, records: list[ServerRecord]) -> Window | None:
        own = self._own((serving.offer.start, serving.offer.end), worth(*serving.rates))
        return should_move(own, self._options(records), self._shares(records), self._num_blocks)

    def _own(self, window: Window, rate: int) -> Share:
        return Share(self._network.peer, *window, max(1, rate))

    def _shares(self, records: Iterable[ServerRecord]) -> list[Share]:
        return shares_of(records, self._num_blocks)

    def _options(self, records: Iterable[ServerRecord]) -> Options:
        unknown = typical_rate(records)

        def rate_of(blocks: int) -> int:
            rates = self._measured.expected(replace(self._key, blocks=blocks))
            if rates is None:
                return max(1, unknown // blocks)
            most = self._network_tokens_per_second()
            return worth(min(most, rates.decode_tokens_per_second), min(most, rates.prefill_tokens_per_second))

        return Options(self._network.peer, self._fit.windows, rate_of)

    def _network_tokens_per_second(self) -> float:
        """What gets through the network at most, as far as that is known."""
        network = self._measured.network
        if network is None or network.bits_per_second is None:
            return float("inf")
        return network.bits_per_second / (8 * STATE_BYTES * self._hidden_size)

    def _note_network(self) -> None:
        links = (self._network.link(peer) for peer in self._network.connected)
        found = network_of(link for link in links if link is not None)
        if found is not None:
            self._measured.keep_network(found)

    def _choice(self, window: Window, others: Iterable[Share]) -> Choice:
        held = list(others)
        coverage = coverage_of(held, self._num_blocks)
        why: Why = "first" if not held else "gap" if 0 in coverage[slice(*window)] else "thin"
        return choice_of(self._fit, window, why, servers=len(held))


def choice_of(fit: Fit, window: Window, why: Why, *, servers: int = 0) -> Choice:
    """A window that fits, as a choice."""
    return Choice(
        window=window,
        num_blocks=fit.task.footprint.num_blocks,
        why=why,
        cache_tokens=fit.cache_tokens(window),
        servers=servers,
        need=fit.need(window),
        whole_bytes=fit.whole.total,
        limit_bytes=fit.limit_bytes,
        spread=fit.spread(window),
    )
