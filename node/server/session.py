"""One session on a server: takes steps in order, has them run, passes the results on, and ends for one reason."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio
from typing_extensions import Buffer

from swarmnode.errors import MachineFault, PeerBusy, PeerLost, PeerRefused, ProtocolViolation, SwarmnodeError
from swarmnode.node.background import race
from swarmnode.node.codec import Compression
from swarmnode.node.codec.choice import send_codec
from swarmnode.node.defaults import (
    CLIENT_SILENT_PINGS,
    CLOSE_SECONDS,
    MAX_IN_FLIGHT_STEPS,
    PING_SECONDS,
    SESSION_IDLE_SECONDS,
)
from swarmnode.node.net.network import Network
from swarmnode.node.streams import MessageStream, Silence
from swarmnode.protocols.limits import MAX_HOPS
from swarmnode.protocols.messages import (
    Break,
    Close,
    HopTrace,
    Open,
    Output,
    Ping,
    Pong,
    Step,
    TensorHeader,
)

from .busy import as_error
from .engine import Computed, Engine
from .link import SuccessorLink

__all__ = ["ServerSession"]

_log = logging.getLogger("swarmnode.server")


class ServerSession:
    """Blocks `asked.start:asked.end` for one client.

    Args:
        asked: what the client opened the session with, checked and admitted.
        client: the stream it came on.
        compression: how this node was told to send.
    """

    def __init__(
        self,
        asked: Open,
        client: MessageStream,
        *,
        network: Network,
        engine: Engine,
        compression: Compression,
    ) -> None:
        self.asked = asked
        self._client = client
        self._engine = engine
        self._compression = compression
        self._link = SuccessorLink(network, asked.successor, self._relay) if asked.successor else None
        self._under_way: deque[int] = deque()
        self._newest_step = -1
        self._stepped_at = trio.current_time()
        self._attached: set[trio.CancelScope] = set()
        self._ending = trio.Event()
        self._why: SwarmnodeError | None = None

    async def run(self) -> None:
        """Serve the client until either side ends the session. Raises what the client did wrong."""
        try:
            await race(self._client.run_writer, self._serve)
        except PeerLost as error:
            _log.debug("session of %s ended: %s", self._client.peer, error.message)
        finally:
            for scope in self._attached:
                scope.cancel()
        if isinstance(self._why, ProtocolViolation) and self._why.peer == self._client.peer:
            raise self._why

    def end(self, why: SwarmnodeError | None) -> None:
        """End the session; `why` is told to the client, None is a polite end."""
        if not self._ending.is_set():
            self._why = why
            self._ending.set()

    async def follow(self, predecessor: MessageStream) -> None:
        """Take steps from the predecessor's stream until it or the session ends."""
        with trio.CancelScope() as scope:
            self._attached.add(scope)
            try:
                await race(predecessor.run_writer, lambda: self._listen(predecessor))
            except ProtocolViolation as violation:
                self.end(violation)
                raise
            finally:
                self._attached.discard(scope)

    async def _serve(self) -> None:
        tasks: list[Callable[[], Awaitable[object]]] = [
            self._read_client,
            self._watch,
            self._ending.wait,
        ]
        if self._link is not None:
            tasks.append(self._hold_link)
        await race(*(self._guarded(task) for task in tasks))
        if self._why is not None:
            why = self._why
            with suppress(PeerLost):
                step = self._under_way[0] if self._under_way else None
                later = why.retry_after_seconds if isinstance(why, PeerBusy) else None
                self._client.post_soon(Break(why.code, why.message, why.hint, step, why.peer, later))
        # The writer ends the race once all is written; it is given a moment for that.
        self._client.finish()
        await trio.sleep(CLOSE_SECONDS)

    def _guarded(self, task: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
        """The task, ending the session by whatever it raises."""

        async def run() -> None:
            try:
                await task()
            except SwarmnodeError as error:
                self.end(error)
            except Exception:  # noqa: BLE001 - the outermost edge of a session
                _log.exception("a session of %s failed", self._client.peer)
                self.end(MachineFault("The server failed while computing.", hint="Try another server."))

        return run

    async def _hold_link(self) -> None:
        assert self._link is not None
        await self._link.run()
        await trio.sleep_forever()  # a lost link does not end the session: the client relays

    async def _read_client(self) -> None:
        await self._listen(self._client)
        self.end(None)

    async def _listen(self, messages: MessageStream) -> None:
        """Take what the client or the predecessor sends until it finishes. Never waits for a write."""
        while (received := await messages.receive()) is not None:
            match received:
                case (Step() as step, body):
                    self._take(step, body, messages.peer)
                case (Ping(nonce), _):
                    messages.post_soon(Pong(nonce))
                case (Close(), _):
                    return
                case (other, _):
                    raise ProtocolViolation(
                        f"Peer {messages.peer} sent {other.type} in the middle of a session.", peer=messages.peer
                    )

    def _take(self, step: Step, body: memoryview, peer: str) -> None:
        if step.step <= self._newest_step:
            return  # a step that was sent again because a link broke, and had arrived after all
        rows, tokens, hidden_size = step.tensor.shape
        if rows != self.asked.rows or hidden_size != self._engine.hidden_size or tokens > self._engine.max_step_tokens:
            raise ProtocolViolation(
                f"Peer {peer} sent a step of shape {list(step.tensor.shape)}; "
                f"[{self.asked.rows}, up to {self._engine.max_step_tokens}, {self._engine.hidden_size}] was agreed.",
                peer=peer,
            )
        if step.tensor.dtype != self.asked.dtype:
            raise ProtocolViolation(
                f"Peer {peer} sent a step in {step.tensor.dtype}; {self.asked.dtype} was agreed.", peer=peer
            )
        if step.tensor.codec not in self.asked.codecs:
            raise ProtocolViolation(
                f"Peer {peer} sent a step in codec {step.tensor.codec}, which was not agreed on.", peer=peer
            )
        if len(self._under_way) >= MAX_IN_FLIGHT_STEPS:
            raise ProtocolViolation(f"Peer {peer} has more than {MAX_IN_FLIGHT_STEPS} steps under way.", peer=peer)
        self._newest_step = step.step
        self._stepped_at = trio.current_time()
        busy = self._engine.submit(
            self.asked.session,
            step,
            body,
            keep=step.keep if self._link is None else None,
            dtype=self.asked.dtype,
            codec=self._codec,
            done=partial(self._ran, step, peer),
        )
        if busy is not None:
            raise as_error(busy)
        self._under_way.append(step.step)

    def _ran(self, step: Step, peer: str, computed: Computed | SwarmnodeError) -> None:
        """Hand a step's result on. Never waits."""
        try:
            if isinstance(computed, ProtocolViolation):
                raise ProtocolViolation(computed.message, hint=computed.hint, peer=peer)
            if isinstance(computed, SwarmnodeError):
                raise computed
            self._hand_on(step, computed)
        except SwarmnodeError as error:
            self.end(error)
        else:
            self._under_way.popleft()

    def _codec(self, tensor: TensorHeader) -> int:
        """In which codec a result goes on; it may have to go to the client instead, which reads all that it allows."""
        way = self._client.link if self._link is None else self._link.way
        return send_codec(self._compression, tensor, self.asked.codecs, way)

    def _hand_on(self, step: Step, computed: Computed) -> None:
        asked = self.asked
        trace = (*step.trace, HopTrace(asked.start, asked.end, computed.queue_us, computed.compute_us))[:MAX_HOPS]
        if self._link is None:
            position = step.position + step.tensor.tokens - step.keep
            self._answer(Output(step.step, position, asked.end, computed.tensor, trace), computed.body)
            return
        forward = Step(step.step, step.position, step.keep, computed.tensor, trace, step.segments)
        if not self._link.pass_on(forward, computed.body):
            self._answer(_for_client(forward, asked.end), computed.body)

    def _answer(self, output: Output, body: Buffer) -> None:
        if not self._client.post_soon(output, body):  # no honest client leaves so many answers unread
            raise ProtocolViolation(f"Peer {self._client.peer} does not read.", peer=self._client.peer)

    def _relay(self, step: Step, body: Buffer) -> None:
        """Give the client what a broken link may have swallowed."""
        with suppress(PeerLost):
            self._client.post_soon(_for_client(step, self.asked.end), body)

    async def _watch(self) -> None:
        silence = Silence(self._client, CLIENT_SILENT_PINGS)
        while True:
            await trio.sleep(PING_SECONDS)
            if silence.check():
                raise PeerLost(f"Client {self._client.peer} fell silent.", peer=self._client.peer)
            if trio.current_time() - self._stepped_at > SESSION_IDLE_SECONDS:
                raise PeerRefused(
                    f"The session did nothing for {SESSION_IDLE_SECONDS / 60:.0f} minutes, so its cache was given up.",
                    hint="Open a new session.",
                )


def _for_client(step: Step, next_block: int) -> Output:
    return Output(step.step, step.position, next_block, step.tensor, step.trace)
