"""A span offered to the swarm: announced while it loads, measured, served, and withdrawn. Knows no model's files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from swarmnode.errors import PeerBusy
from swarmnode.models.families import certificate
from swarmnode.models.span import Span
from swarmnode.node.background import race
from swarmnode.node.codec import Compression
from swarmnode.node.defaults import CLOSE_SECONDS, FIRST_FRAME_SECONDS, RECORD_LIFETIME_SECONDS
from swarmnode.node.net.circuits import without_peer
from swarmnode.node.net.network import Network, Stream
from swarmnode.node.streams import MessageStream
from swarmnode.node.torch_thread import TorchThread
from swarmnode.protocols.adapters import AdapterId
from swarmnode.protocols.ids import SESSION, SPOKEN, TRAINING
from swarmnode.protocols.limits import MAX_ADDRS
from swarmnode.protocols.messages import Refused
from swarmnode.protocols.records import NOT_QUANTISED, ModelId, ServerRecord, ServerState, sign_record
from swarmnode.protocols.tensors import KNOWN_CODECS

from .cache_budget import CacheStatistics
from .engine import Engine
from .handler import SessionHandler
from .rates import Rates
from .trainer import Trainer
from .training import TrainingHandler

if TYPE_CHECKING:
    from swarmnode.node.discovery.directory import Directory

__all__ = ["Offer", "Serving", "open_serving"]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server offers.

    Attributes:
        dtype: of the weights and of the hidden states it makes.
        quantisation: in what its weights are kept, if that is something else.
        cache_tokens: how many tokens all sessions together may hold.
        public_name: shown beside the server; may be empty.
        compression: how it sends what it computed.
        segment_tokens, deterministic, prefix_cache, share_prefixes: as for `Engine`.
        preferred: as for `SessionHandler`.
        adapters: those that sessions may choose.
        training_bytes: the most memory that training through these blocks takes; 0: no training.
        expected: tokens per second of decode and of prefill that it should make, said until it is ready; 0: unknown.
    """

    model: ModelId
    num_blocks: int
    start: int
    end: int
    dtype: str
    cache_tokens: int
    public_name: str
    quantisation: str = NOT_QUANTISED
    compression: Compression = "auto"
    segment_tokens: int | None = None
    deterministic: bool = False
    prefix_cache: bool = True
    share_prefixes: bool = False
    preferred: frozenset[str] = frozenset()
    adapters: tuple[AdapterId, ...] = ()
    training_bytes: int = 0
    expected: tuple[float, float] = (0.0, 0.0)


class Serving:
    """An offer from the moment it is announced. Made by `open_serving`."""

    def __init__(self, network: Network, directory: Directory, torch_thread: TorchThread, offer: Offer) -> None:
        self.offer = offer
        self._network = network
        self._directory = directory
        self._torch_thread = torch_thread
        self._engine: Engine | None = None
        self._handler: SessionHandler | None = None
        self._trainer: Trainer | None = None
        self._training: TrainingHandler | None = None
        self._state: ServerState = "joining"

    @property
    def sessions(self) -> int:
        """How many are open now."""
        return self._handler.sessions if self._handler is not None else 0

    @property
    def passes(self) -> int:
        """How many passes of training there are now."""
        return self._training.passes if self._training is not None else 0

    @property
    def in_use(self) -> bool:
        """Whether anybody would miss the blocks now."""
        return bool(self.sessions or self.passes)

    @property
    def cache_tokens_left(self) -> int:
        """Tokens that a new session could hold at once."""
        return self._engine.cache_tokens_left if self._engine is not None else self.offer.cache_tokens

    @property
    def waiting_steps(self) -> int:
        """Steps that wait for their turn, or for cache."""
        return self._engine.waiting_steps if self._engine is not None else 0

    def cache_statistics(self) -> CacheStatistics | None:
        """Who holds what, and what has become of sessions; None while nothing is loaded."""
        return self._engine.statistics() if self._engine is not None else None

    @property
    def saved_tokens(self) -> int:
        """Tokens that were not computed because sessions had begun alike."""
        return self._engine.prefix_statistics().saved_tokens if self._engine is not None else 0

    @property
    def cache_bytes(self) -> int:
        """What the whole cache takes when it is full; 0 where states do not grow, or nothing is loaded yet."""
        return self._engine.cache_bytes if self._engine is not None else 0

    @property
    def rates(self) -> tuple[float, float]:
        """Tokens per second of decode and of prefill, as measured."""
        if self._engine is None:
            return self.offer.expected
        return self._engine.rates.decode_tokens_per_second, self._engine.rates.prefill_tokens_per_second

    def record(self, sequence: int) -> ServerRecord:
        """What the server says of itself now."""
        decode, prefill = self.rates
        return ServerRecord(
            peer=self._network.peer,
            sequence=sequence,
            lifetime_seconds=RECORD_LIFETIME_SECONDS,
            model=self.offer.model,
            num_blocks=self.offer.num_blocks,
            start=self.offer.start,
            end=self.offer.end,
            dtype=self.offer.dtype,
            quantisation=self.offer.quantisation,
            state=self._state,
            cache_tokens_left=self.cache_tokens_left,
            decode_tokens_per_second=decode,
            prefill_tokens_per_second=prefill,
            addrs=tuple(map(without_peer, self._network.addrs))[:MAX_ADDRS],
            protocols=(*SPOKEN, TRAINING) if self._training is not None else SPOKEN,
            public_name=self.offer.public_name,
            relayed=self._network.is_relayed,
            codecs=KNOWN_CODECS,
            adapters=self.offer.adapters,
        )

    def offer_instead(self, offer: Offer) -> None:
        """Announce something else, while nothing is loaded yet."""
        self.offer = offer
        self._directory.publish(self.record)

    async def begin(self, span: Span, *, known: tuple[float, float] | None = None) -> None:
        """Take sessions on the loaded span. Returns when others can find it.

        Args:
            known: its rates of decode and prefill, where they need not be measured first.
        """
        engine = Engine(
            span,
            self._torch_thread,
            cache_tokens=self.offer.cache_tokens,
            deterministic=self.offer.deterministic,
            segment_tokens=self.offer.segment_tokens,
            prefix_cache=self.offer.prefix_cache,
            share_prefixes=self.offer.share_prefixes,
        )
        await engine.measure(None if known is None else Rates(*known))
        self._engine = engine
        handler = self._handler = SessionHandler(
            self._network,
            self.offer.model,
            engine,
            self.offer.compression,
            preferred=self.offer.preferred,
            adapters=self.offer.adapters,
        )
        self._network.handle(SESSION, handler)
        if self.offer.training_bytes and certificate(span.model.config.model_type).trains:
            self._train(engine, span)
        self._state = handler.state = "online"
        self._directory.publish(self.record)
        await self._directory.announced()

    async def measure(self) -> tuple[float, float]:
        """Measure while serving, and say so from now on; the rates of decode and of prefill."""
        assert self._engine is not None
        await self._engine.measure()
        return self.rates

    async def run(self) -> None:
        """Serve for ever what `begin` has begun."""
        assert self._engine is not None
        if self._trainer is None:
            await self._engine.run()
        else:
            await race(self._engine.run, self._trainer.run)

    async def leave(self) -> None:
        """Tell clients and the directory, as far as that is quick."""
        self._state = "draining"
        self._directory.publish(self.record)
        if self._handler is not None:
            self._network.handle(SESSION, _say_not_now)
            if self._training is not None:
                self._network.handle(TRAINING, _say_not_now)
                self._training.leave()
            await self._handler.leave()
        self._directory.publish(None)
        # A node that goes on to serve other blocks wants the memory of these.
        self._engine = self._handler = self._trainer = self._training = None

    def _train(self, engine: Engine, span: Span) -> None:
        """Take passes of training, too."""
        trainer = Trainer(span, self._torch_thread, busy=lambda: engine.busy, memory_bytes=self.offer.training_bytes)
        engine.batch_over = trainer.batch_over
        handler = TrainingHandler(
            self.offer.model, trainer, start=span.start, end=span.end, hidden_size=span.hidden_size
        )
        self._network.handle(TRAINING, handler)
        self._trainer, self._training = trainer, handler


async def _say_not_now(stream: Stream) -> None:
    """Answer who wants a session or training where there are none any more, or not yet."""
    with trio.move_on_after(FIRST_FRAME_SECONDS):
        messages = MessageStream(stream)
        if await messages.receive() is not None:
            error = PeerBusy("This server is leaving, or is about to hold other blocks.", hint="Try another server.")
            await messages.send(Refused(error.code, error.message, error.hint))


@asynccontextmanager
async def open_serving(
    network: Network, directory: Directory, torch_thread: TorchThread, offer: Offer
) -> AsyncIterator[Serving]:
    """Announce an offer as joining, for as long as the block runs; the block loads the span and calls `begin`.

    Raises `BadInput` when no peer would accept what is offered, such as a public name that is too long.
    """
    serving = Serving(network, directory, torch_thread, offer)
    sign_record(serving.record(1), network.sign)
    directory.publish(serving.record)
    try:
        yield serving
    finally:
        with trio.move_on_after(CLOSE_SECONDS) as scope:
            scope.shield = True
            await serving.leave()
