"""Answers the session protocol: decides on each open, brings attaches to their sessions. Knows no torch."""

from __future__ import annotations

import logging
from collections.abc import Collection

import trio

from swarmnode.errors import BadRange, ModelMismatch, PeerBusy, PeerLost, PeerRefused, ProtocolViolation, SwarmnodeError
from swarmnode.node.adapters import listed
from swarmnode.node.codec import Compression
from swarmnode.node.defaults import (
    ATTACH_SECONDS,
    CLOSE_SECONDS,
    FIRST_FRAME_SECONDS,
    MAX_IN_FLIGHT_STEPS,
    MAX_WAITING_ATTACHES,
)
from swarmnode.node.net.network import Network, Stream
from swarmnode.node.streams import MessageStream
from swarmnode.protocols.adapters import AdapterId
from swarmnode.protocols.messages import Attach, Attached, Open, Opened, Refused
from swarmnode.protocols.records import ModelId, ServerState
from swarmnode.protocols.tensors import DTYPE_BYTES, KNOWN_CODECS

from .busy import as_error
from .engine import Engine
from .schedule import Priority
from .session import ServerSession
from .use import Use

__all__ = ["SessionHandler"]

ROWS = 1
"""Sequences in a session that this version can run."""

_log = logging.getLogger("swarmnode.server")


class SessionHandler:
    """All sessions of one server.

    Args:
        preferred: peers whose steps go before those of others, behind our own.
        adapters: those that sessions may choose.

    Attributes:
        state: only an online server takes sessions.
    """

    def __init__(
        self,
        network: Network,
        model: ModelId,
        engine: Engine,
        compression: Compression = "auto",
        *,
        preferred: frozenset[str] = frozenset(),
        adapters: Collection[AdapterId] = (),
    ) -> None:
        self.state: ServerState = "joining"
        self._network = network
        self._model = model
        self._engine = engine
        self._compression = compression
        self._preferred = preferred
        self._adapters = adapters
        self._sessions: dict[bytes, ServerSession] = {}
        self._changed = trio.Event()
        self._waiting_attaches = 0

    @property
    def sessions(self) -> int:
        """How many are open now."""
        return len(self._sessions)

    async def __call__(self, stream: Stream) -> None:
        """Answer one stream of the session protocol."""
        messages = MessageStream(stream)
        with trio.move_on_after(FIRST_FRAME_SECONDS) as waiting:
            received = await messages.receive()
        if waiting.cancelled_caught:
            raise PeerLost(f"Peer {stream.peer} opened a stream and said nothing.", peer=stream.peer)
        match received:
            case None:
                return
            case (Open() as asked, _):
                await self._serve_client(messages, asked)
            case (Attach() as asked, _):
                await self._serve_predecessor(messages, asked)
            case (other, _):
                raise ProtocolViolation(f"Peer {stream.peer} began with {other.type}.", peer=stream.peer)

    async def leave(self) -> None:
        """Take no more sessions and end those there are, telling their clients."""
        self.state = "draining"
        for session in self._sessions.values():
            session.end(PeerLost("This server is leaving.", hint="Ask again: another server may take over."))
        with trio.move_on_after(CLOSE_SECONDS):
            while self._sessions:
                await self._changed.wait()

    async def _serve_client(self, messages: MessageStream, asked: Open) -> None:
        try:
            self._check(asked)
        except SwarmnodeError as error:
            await self._refuse(messages, error)
            return
        session = ServerSession(
            asked, messages, network=self._network, engine=self._engine, compression=self._compression
        )
        use = Use(
            session=asked.session,
            peer=messages.peer,
            start=asked.start,
            end=asked.end,
            tokens=asked.max_tokens,
            priority=self._priority(messages.peer),
            ended=session.end,
            dtype=asked.dtype,
            public_tokens=asked.public_tokens,
            adapter=asked.adapter,
        )
        busy = await self._engine.open(use)
        if busy is not None:
            await self._refuse(messages, as_error(busy))
            return
        self._sessions[asked.session] = session
        self._tell()
        try:
            _log.debug("session of %s opened on blocks %d:%d", messages.peer, asked.start, asked.end)
            left, most = self._engine.cache_tokens_left, self._engine.max_step_tokens
            messages.post_soon(Opened(asked.session, left, most, MAX_IN_FLIGHT_STEPS))
            await session.run()
        finally:
            del self._sessions[asked.session]
            self._engine.close(asked.session)
            self._tell()

    def _priority(self, peer: str) -> Priority:
        if peer == self._network.peer:
            return Priority.OWN
        return Priority.LISTED if peer in self._preferred else Priority.OTHERS

    def _check(self, asked: Open) -> None:
        """Raise the reason why this open can never be served, or not now."""
        span = (asked.start, asked.end)
        if asked.model != self._model:
            ours, theirs = _shown(self._model, asked.model), _shown(asked.model, self._model)
            raise ModelMismatch(f"This server holds {ours}, not {theirs}.", hint="Use the same revision on both sides.")
        if self.state != "online":
            doing = "is still loading its blocks" if self.state == "joining" else "is leaving"
            raise PeerBusy(f"This server {doing}.", hint="Try again later, or another server.")
        if not self._engine.start <= asked.start < asked.end <= self._engine.end:
            raise BadRange(
                f"This server holds blocks {self._engine.start}:{self._engine.end}, not {asked.start}:{asked.end}.",
                span=span,
            )
        if asked.end < self._engine.num_blocks and asked.successor is None:
            raise PeerRefused(f"Blocks {asked.start}:{asked.end} are not the last and have no successor.", span=span)
        if asked.adapter and asked.adapter.digest not in {own.digest for own in self._adapters}:
            there = f"it has {listed(self._adapters)}" if self._adapters else "it has none"
            raise PeerRefused(f"This server has no adapter {asked.adapter}; {there}.", span=span)
        if asked.dtype not in DTYPE_BYTES:
            raise PeerRefused(f"Hidden states cannot be sent here as {asked.dtype}.", hint="Use float32.")
        if unknown := set(asked.codecs).difference(KNOWN_CODECS):
            raise PeerRefused(f"Codec {min(unknown)} is not read here.", hint="Leave it out.")
        if asked.rows != ROWS:
            raise PeerRefused(f"This server runs {ROWS} row in a session, not {asked.rows}.")
        if self._engine.knows(asked.session):
            raise PeerRefused("This session is open already.")

    async def _refuse(self, messages: MessageStream, error: SwarmnodeError) -> None:
        _log.info("an open by %s is refused: %s", messages.peer, error.message)
        later = error.retry_after_seconds if isinstance(error, PeerBusy) else None
        await messages.send(Refused(error.code, error.message, error.hint, later))

    async def _serve_predecessor(self, messages: MessageStream, asked: Attach) -> None:
        session = None
        if self._waiting_attaches < MAX_WAITING_ATTACHES:
            self._waiting_attaches += 1
            try:
                with trio.move_on_after(ATTACH_SECONDS):
                    session = await self._wait_for(asked.session)
            finally:
                self._waiting_attaches -= 1
        # One answer for both, so that nobody learns by asking which sessions there are.
        if session is None or session.asked.predecessor != messages.peer:
            await self._refuse(messages, PeerRefused("No session here expects you."))
            return
        await messages.send(Attached())
        await session.follow(messages)

    def _tell(self) -> None:
        """Wake whoever waits for a session to come or go."""
        self._changed.set()
        self._changed = trio.Event()

    async def _wait_for(self, session: bytes) -> ServerSession:
        while session not in self._sessions:
            await self._changed.wait()
        return self._sessions[session]


def _shown(model: ModelId, other: ModelId) -> str:
    """A model for people, with just so much of it as tells it from the other."""
    if model.name != other.name:
        return model.name
    if model.revision != other.revision:
        return f"{model.name} at revision {model.revision[:12]}"
    return f"{model.name} with weights {model.digest.hex()[:12]}"
