"""A server's stream to the next server of a session: opened early, watched, and given up for the client's own relay."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import trio
from typing_extensions import Buffer

from swarmnode.errors import PeerFault, PeerLost, ProtocolViolation
from swarmnode.node.background import race
from swarmnode.node.defaults import ATTACH_SECONDS, MAX_IN_FLIGHT_STEPS, PING_SECONDS, SILENT_PINGS
from swarmnode.node.links import Link
from swarmnode.node.net.network import Network
from swarmnode.node.streams import MessageStream, Silence
from swarmnode.protocols.ids import SESSION
from swarmnode.protocols.messages import Attach, Attached, Ping, Pong, Refused, Step, Successor
from swarmnode.protocols.refusals import error_from

__all__ = ["SuccessorLink"]

_log = logging.getLogger("swarmnode.server")


class SuccessorLink:
    """Passes steps on to the successor that an open named.

    What was passed on lately is kept, because nobody can tell how much of it a broken stream has delivered. A step has
    its number, so a server that gets one twice drops it.

    Args:
        give_back: called with each step that was passed on but may be lost, oldest first, when the link goes down.
    """

    def __init__(self, network: Network, successor: Successor, give_back: Callable[[Step, Buffer], None]) -> None:
        self._network = network
        self._successor = successor
        self._give_back = give_back
        self._messages: MessageStream | None = None
        self._recent: deque[tuple[Step, Buffer]] = deque(maxlen=MAX_IN_FLIGHT_STEPS)
        self._down = False

    @property
    def way(self) -> Link:
        """What is known of the way to the successor."""
        return self._messages.link if self._messages is not None else Link()

    async def run(self) -> None:
        """Dial, attach and hold the link until it goes down. Cancelled when the session ends."""
        try:
            await self._hold()
        except PeerFault as error:
            _log.info("the link to successor %s is down: %s", self._successor.peer, error.message)
        self._down = True
        while self._recent:
            self._give_back(*self._recent.popleft())

    def pass_on(self, step: Step, body: Buffer) -> bool:
        """Send a step to the successor, as soon as the link stands; False when it is down for good."""
        if self._down:
            return False
        # Kept before it is sent: if the link breaks in between, it is given back with the others.
        self._recent.append((step, body))
        if self._messages is not None:
            self._send(self._messages, step, body)
        return True

    def _send(self, messages: MessageStream, step: Step, body: Buffer) -> None:
        try:
            sent = messages.post_soon(step, body)
        except PeerLost:
            _log.debug("step %d is given back", step.step)
        else:
            if not sent:  # it takes nothing, and lives: more steps than can be under way wait for it
                raise ProtocolViolation(f"Peer {messages.peer} does not read.", peer=messages.peer)

    async def _hold(self) -> None:
        stream = await self._network.open_stream(self._successor.peer, SESSION, self._successor.addrs)
        messages = MessageStream(stream)
        try:
            await messages.send(Attach(self._successor.session))
            await self._attached(messages)
            self._messages = messages
            for step, body in self._recent:
                self._send(messages, step, body)
            await race(messages.run_writer, lambda: self._listen(messages), lambda: self._watch(messages))
        finally:
            with trio.CancelScope(shield=True):
                await messages.close()

    async def _attached(self, messages: MessageStream) -> None:
        answer = None
        with trio.move_on_after(ATTACH_SECONDS + PING_SECONDS):
            answer, _ = await messages.expect()
        if isinstance(answer, Refused):
            raise error_from(answer.code, answer.message, answer.hint, peer=messages.peer)
        if answer is None:
            raise PeerLost(f"Peer {messages.peer} did not answer an attach.", peer=messages.peer)
        if not isinstance(answer, Attached):
            raise ProtocolViolation(f"Peer {messages.peer} answered an attach with {answer.type}.", peer=messages.peer)

    async def _listen(self, messages: MessageStream) -> None:
        while True:
            match await messages.expect():
                case (Ping(nonce), _):
                    messages.post_soon(Pong(nonce))
                case (Pong(nonce), _):
                    messages.answered(nonce)
                case (other, _):
                    raise ProtocolViolation(f"Peer {messages.peer} sent {other.type} to its predecessor.")

    async def _watch(self, messages: MessageStream) -> None:
        silence = Silence(messages, SILENT_PINGS)
        while True:
            messages.ping()
            await trio.sleep(PING_SECONDS)
            if silence.check():
                raise PeerLost(f"Peer {messages.peer} fell silent.", peer=messages.peer)
