"""The client's stream to one server of a route: opened, kept alive, watched. Knows no step and no text."""

from __future__ import annotations

from collections.abc import Callable

import trio
from typing_extensions import Buffer

from swarmnode.errors import PeerLost, PeerUnreachable, ProtocolViolation, SwarmnodeError
from swarmnode.node.background import race
from swarmnode.node.defaults import CLOSE_SECONDS, OPEN_SECONDS, PING_SECONDS, SILENCE_SECONDS, SILENT_PINGS
from swarmnode.node.links import Link
from swarmnode.node.net.network import Network
from swarmnode.node.routes import Hop
from swarmnode.node.streams import MessageStream, Silence
from swarmnode.protocols.ids import SESSION
from swarmnode.protocols.messages import Break, Close, Open, Opened, Output, Ping, Pong, Refused, Step
from swarmnode.protocols.refusals import error_from

__all__ = ["HopLink", "open_hop"]


class HopLink:
    """One server's part in a session.

    Attributes:
        hop: the server and its blocks.
        opened: what it promised.
    """

    def __init__(self, hop: Hop, messages: MessageStream, opened: Opened) -> None:
        self.hop = hop
        self.opened = opened
        self._messages = messages

    @property
    def way(self) -> Link:
        """What is known of the way to the server."""
        return self._messages.link

    async def run(self, receive: Callable[[Output, memoryview], None]) -> None:
        """Keep the hop alive and hand each of its outputs to `receive`, which must not wait.

        Raises:
            PeerLost: the server went away or fell silent.
            ProtocolViolation: it broke the protocol.
            PeerRefused: or another error, with which the server ended the session.
        """
        try:
            await race(self._messages.run_writer, lambda: self._listen(receive), self._watch)
        except PeerLost as lost:
            raise (lost if lost.span is not None else self._lost("went away")) from None

    async def send(self, step: Step, body: Buffer) -> None:
        """Send a step, waiting for room. Raises `PeerLost`."""
        await self._messages.post(step, body)

    def send_soon(self, step: Step, body: Buffer) -> None:
        """Send a step that another hop gave back. Raises `ProtocolViolation` when there are too many.

        It is called where the other hop is listened to: that this one is lost must be said by its own `run`.
        """
        try:
            posted = self._messages.post_soon(step, body)
        except PeerLost:
            return
        if not posted:
            raise ProtocolViolation(
                f"More steps come for peer {self.hop.peer} than were ever sent.", peer=self.hop.peer, span=self._span
            )

    async def close(self) -> None:
        """Say that all is well, and close. Only when `run` is over. Never raises."""
        with trio.CancelScope(shield=True):
            try:
                with trio.move_on_after(CLOSE_SECONDS):
                    if not self._messages.broken:
                        await self._messages.send(Close())
            except PeerLost:
                pass  # it went first
            finally:
                await self._messages.close()

    async def reset(self) -> None:
        """Drop the stream. Never raises."""
        await self._messages.reset()

    @property
    def _span(self) -> tuple[int, int]:
        return (self.hop.start, self.hop.end)

    async def _listen(self, receive: Callable[[Output, memoryview], None]) -> None:
        while True:
            match await self._messages.expect():
                case (Output() as output, body):
                    receive(output, body)
                case (Ping(nonce), _):
                    self._messages.post_soon(Pong(nonce))
                case (Pong(nonce), _):
                    self._messages.answered(nonce)
                case (Break() as said, _):
                    raise _error(said, self.hop.peer, self._span)
                case (other, _):
                    raise ProtocolViolation(
                        f"Peer {self.hop.peer} sent {other.type} to its client.", peer=self.hop.peer, span=self._span
                    )

    async def _watch(self) -> None:
        silence = Silence(self._messages, SILENT_PINGS)
        while True:
            self._messages.ping()
            await trio.sleep(PING_SECONDS)
            if silence.check():
                raise self._lost(f"fell silent for {SILENCE_SECONDS:.0f} seconds")

    def _lost(self, how: str) -> PeerLost:
        hop = self.hop
        return PeerLost(
            f"Peer {hop.peer}, which runs blocks {hop.start}:{hop.end}, {how}.",
            hint="Ask again: the swarm may have another server for these blocks.",
            peer=hop.peer,
            span=self._span,
        )


async def open_hop(network: Network, hop: Hop, asked: Open) -> HopLink:
    """Dial a server and open a session on it.

    Raises:
        PeerUnreachable, PeerLost, ProtocolViolation: it does not answer, or nonsense.
        PeerRefused: or a class below or beside it, by the reason that the server gave.
    """
    span = (hop.start, hop.end)
    with trio.move_on_after(OPEN_SECONDS):
        messages = MessageStream(await network.open_stream(hop.peer, SESSION, hop.addrs))
        try:
            await messages.send(asked)
            answer, _ = await messages.expect()
            if isinstance(answer, Refused):
                raise _error(answer, hop.peer, span)
            if not isinstance(answer, Opened) or answer.session != asked.session:
                raise ProtocolViolation(f"Peer {hop.peer} answered an open with {answer.type}.", peer=hop.peer)
        except BaseException:
            with trio.CancelScope(shield=True):
                await messages.reset()
            raise
        return HopLink(hop, messages, answer)
    raise PeerUnreachable(
        f"Peer {hop.peer}, which has blocks {hop.start}:{hop.end}, did not answer within {OPEN_SECONDS:.0f} seconds.",
        peer=hop.peer,
        span=span,
    )


def _error(said: Refused | Break, peer: str, span: tuple[int, int]) -> SwarmnodeError:
    later = said.retry_after_seconds
    return error_from(said.code, said.message, said.hint, peer=peer, span=span, retry_after_seconds=later)
