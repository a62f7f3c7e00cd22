"""The gate that every connection passes before the swarm gets it: lists of peers, then the private swarm's key.

Without a key nothing is said at the gate. With one, both ends prove it on the connection's first stream, or the
connection ends before it has carried anything else, whatever it runs over. A node without a key answers those who ask
for one, so that both sides can say why they part. Knows neither TCP nor QUIC nor py-libp2p's swarm.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any, Final, Protocol

import trio

from swarmnode.errors import PeerFault, PeerLost, PeerRefused, ProtocolViolation
from swarmnode.protocols import limits
from swarmnode.protocols.frames import FrameReader
from swarmnode.protocols.gate import (
    KEY_WANTED,
    NO_KEY,
    WRONG_KEY,
    Answer,
    GateMessage,
    Hello,
    Proof,
    Shut,
    encode,
    parse,
)
from swarmnode.protocols.ids import GATE
from swarmnode.protocols.swarm_key import EXPORTER_CONTEXT, EXPORTER_LABEL, Binding, SwarmKey, is_proof, prove

from .guests import Guests
from .multistream import choose, offer
from .network import Stream
from .p2p import MuxedConnUnavailable

__all__ = ["Gate"]

GATE_SECONDS: Final = 4.0
"""For both proofs together, two round trips at the most."""
LAST_WORD_SECONDS: Final = 1.0
"""How long the other end gets to read why it is shut out, before the connection under it ends."""
SAY_AGAIN_SECONDS: Final = 600.0
"""A peer that keeps knocking gets one line in the log in so long."""
MAX_SAID: Final = 64
"""Lines that strangers can put into the log within that time; the rest is for `--debug`."""
MAX_PRIVATE: Final = 256
"""Peers remembered for wanting a key of us."""

_OTHER_HINT: Final = "Give all nodes of a private swarm the same file with --swarm-key."

_CLOSED: Final = "it closed the connection instead"

_log = logging.getLogger("swarmnode.network")


class Gated(Protocol):
    """What the gate asks of a connection. Its streams come wrapped for py-libp2p, ours is their `stream`."""

    @property
    def peer(self) -> str:
        """Who is at the other end, as proved by its key."""

    def exporter(self, label: bytes, context: bytes, length: int) -> bytes:
        """Bytes that both ends of this connection can make and nobody else (RFC 5705)."""

    async def left(self) -> bool:
        """Wait for the connection's end; whether it was a polite one."""

    async def open_stream(self) -> Any: ...
    async def accept_stream(self) -> Any: ...


class Gate:
    """One node's gate.

    Args:
        peer: our own peer id.
        key: the private swarm's, None in a public one.
        guests: whom to have connections to.
    """

    def __init__(self, peer: str, key: SwarmKey | None = None, guests: Guests | None = None) -> None:
        self._peer = peer
        self._key = key
        self._guests = guests or Guests()
        self._private: dict[str, None] = {}
        self._said: dict[str, float] = {}

    @property
    def has_key(self) -> bool:
        """Whether the swarm is private; who has no key has to say so by `answer`."""
        return self._key is not None

    def check(self, peer: str) -> None:
        """Refuse a peer by its id alone. Raises `PeerRefused`."""
        if (why := self._guests.why_not(peer)) is not None:
            refusal = _no_connection(peer, why, "See --allow-peer and --deny-peer.")
            self._say(refusal)
            raise refusal

    async def admit(self, connection: Gated, *, opened_by_us: bool) -> None:
        """Let a connection pass, or say in the log why not; the caller then ends it. Raises `PeerRefused`.

        Of a dialler that leaves politely before it has opened a stream nothing is said.
        """
        peer = connection.peer
        self.check(peer)
        if self._key is None:
            self._private.pop(peer, None)
            return
        try:
            with trio.fail_after(GATE_SECONDS):
                if opened_by_us:
                    await self._prove_first(connection, self._key)
                else:
                    await self._ask_first(connection, self._key)
            return
        except PeerRefused as error:
            refusal = error
        except trio.TooSlowError:
            refusal = _unproved(peer, f"it did not within {GATE_SECONDS:.0f} s")
        except ProtocolViolation as violation:
            refusal = _unproved(peer, f"it broke the gate's protocol ({violation.message.rstrip('.')})")
        except _Left:  # AutoNAT's dial back, or somebody who looked whether we are here: no news
            raise _unproved(peer, _CLOSED) from None
        except (PeerFault, MuxedConnUnavailable):
            refusal = _unproved(peer, _CLOSED)
        self._say(refusal)
        raise refusal

    async def answer(self, stream: Stream) -> None:
        """Without a key, answer a peer that has a key and wants one of us. Raises `PeerLost`, `ProtocolViolation`."""
        peer = stream.peer
        with trio.move_on_after(GATE_SECONDS):
            talk = _Talk(stream)
            said = await talk.hear()
            while len(self._private) >= MAX_PRIVATE:
                del self._private[next(iter(self._private))]
            self._private[peer] = None
            self._say(_wanted(peer))
            if not isinstance(said, Shut):
                await talk.last_word(NO_KEY)

    def turned_away(self, peer: str) -> PeerRefused | None:
        """The error to raise where a peer has just ended our connection for want of a key."""
        return _wanted(peer) if peer in self._private else None

    async def _prove_first(self, connection: Gated, key: SwarmKey) -> None:
        """The dialler's part."""
        stream: Any = (await connection.open_stream()).stream
        nonce = secrets.token_bytes(limits.NONCE_BYTES)
        try:
            await choose(stream, GATE, then=encode(Hello(nonce)))
        except PeerRefused:
            raise _plain(connection.peer) from None
        talk = _Talk(stream)
        said = await talk.hear()
        if isinstance(said, Shut):
            raise _shut(connection.peer, said.why)
        if not isinstance(said, Answer):
            raise ProtocolViolation("an answer was due")
        binding = Binding(
            dialler=self._peer,
            listener=connection.peer,
            dialler_nonce=nonce,
            listener_nonce=said.nonce,
            exported=_exported(connection),
        )
        if not is_proof(key, binding, "listener", said.proof):
            await talk.last_word(WRONG_KEY)
            raise _shut(connection.peer, WRONG_KEY)
        await talk.say(Proof(prove(key, binding, "dialler")))
        await stream.aclose()

    async def _ask_first(self, connection: Gated, key: SwarmKey) -> None:
        """The listener's part."""
        try:
            stream: Any = (await connection.accept_stream()).stream
        except MuxedConnUnavailable:
            if await connection.left():
                raise _Left from None
            raise
        try:
            await offer(stream, (GATE,), max_wishes=1)
        except ProtocolViolation:
            await self._turn_away(connection)
        talk = _Talk(stream)
        said = await talk.hear()
        if not isinstance(said, Hello):
            raise ProtocolViolation("a hello was due")
        binding = Binding(
            dialler=connection.peer,
            listener=self._peer,
            dialler_nonce=said.nonce,
            listener_nonce=secrets.token_bytes(limits.NONCE_BYTES),
            exported=_exported(connection),
        )
        await talk.say(Answer(binding.listener_nonce, prove(key, binding, "listener")))
        said = await talk.hear()
        if isinstance(said, Shut):
            raise _shut(connection.peer, said.why)
        if not isinstance(said, Proof):
            raise ProtocolViolation("a proof was due")
        if not is_proof(key, binding, "dialler", said.proof):
            await talk.last_word(WRONG_KEY)
            raise _shut(connection.peer, WRONG_KEY)
        await stream.aclose()

    async def _turn_away(self, connection: Gated) -> None:
        """Tell a peer that wants something else first what is wanted of it. Raises `PeerRefused`, always."""
        stream: Any = (await connection.open_stream()).stream
        try:
            await choose(stream, GATE)
        except PeerRefused:
            raise _plain(connection.peer) from None
        await _Talk(stream).last_word(KEY_WANTED)
        raise _shut(connection.peer, NO_KEY)

    def _say(self, refusal: PeerRefused) -> None:
        """One line in the log, not again soon, and not many of them: whoever knocks decides how often."""
        now = trio.current_time()
        self._said = {line: at for line, at in self._said.items() if now - at < SAY_AGAIN_SECONDS}
        loud = refusal.message not in self._said and len(self._said) < MAX_SAID
        if loud:
            self._said[refusal.message] = now
        _log.log(logging.WARNING if loud else logging.DEBUG, "%s", refusal.message)


class _Left(Exception):
    """The other end said good-bye before it had said anything else."""


class _Talk:
    """The gate's messages over one stream, within its bounds."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._reader = FrameReader(0)
        self._left_bytes = limits.MAX_GATE_BYTES

    async def say(self, message: GateMessage) -> None:
        await self._stream.send_all(encode(message))

    async def hear(self) -> GateMessage:
        """The next message. Raises `PeerLost`, `ProtocolViolation`."""
        while (frame := self._reader.next_frame()) is None:
            if self._left_bytes <= 0:
                raise ProtocolViolation(f"A peer has at most {limits.MAX_GATE_BYTES} bytes to say at the gate.")
            data = await self._stream.receive_some(self._left_bytes)
            if not data:
                raise PeerLost(f"{self._stream.peer} ended the stream.", peer=self._stream.peer)
            self._left_bytes -= len(data)
            self._reader.feed(data)
        return parse(frame)

    async def last_word(self, why: str) -> None:
        """Say why not, and wait until that is read: ending the connection sooner may take it from the other end."""
        with trio.move_on_after(LAST_WORD_SECONDS):
            try:
                await self.say(Shut(why))
                await self._stream.send_eof()
                while self._left_bytes > 0 and (data := await self._stream.receive_some(self._left_bytes)):
                    self._left_bytes -= len(data)
            except PeerFault:
                pass  # it has gone; what was to be said is in our log


def _exported(connection: Gated) -> bytes:
    return connection.exporter(EXPORTER_LABEL, EXPORTER_CONTEXT, limits.EXPORTED_BYTES)


def _wanted(peer: str) -> PeerRefused:
    hint = "Ask whoever runs that swarm for its key file, and name it with --swarm-key."
    return _no_connection(peer, "it belongs to a private swarm, and this node has no swarm key", hint)


def _plain(peer: str) -> PeerRefused:
    hint = "It is another program, or a version of swarmnode without swarm keys."
    return _no_connection(peer, "this swarm is private, and it speaks plain libp2p", hint)


def _unproved(peer: str, why: str) -> PeerRefused:
    return _no_connection(peer, f"it was to prove the swarm key, and {why}", _OTHER_HINT)


def _shut(peer: str, why: str) -> PeerRefused:
    reason = {
        NO_KEY: "this swarm is private, and it has no swarm key",
        WRONG_KEY: "it has another swarm key than this node",
    }.get(why, "it refuses this node")
    return _no_connection(peer, reason, _OTHER_HINT)


def _no_connection(peer: str, why: str, hint: str) -> PeerRefused:
    return PeerRefused(f"No connection with {peer}: {why}.", hint=hint, peer=peer)
