"""Steps into a route of servers, outputs back: the data path of one session. Knows no token and no text."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import trio
from typing_extensions import Buffer

from swarmnode.errors import PeerLost, ProtocolViolation, SwarmnodeError
from swarmnode.node.background import race, together
from swarmnode.node.codec import Compression
from swarmnode.node.codec.choice import offered_codecs, send_codec
from swarmnode.node.defaults import MAX_IN_FLIGHT_STEPS, PREFILL_CHUNK_TOKENS, STEP_SECONDS
from swarmnode.node.net.network import Network
from swarmnode.node.routes import Route
from swarmnode.node.tensors import tensor_from_bytes, tensor_to_bytes
from swarmnode.protocols.limits import SESSION_ID_BYTES
from swarmnode.protocols.messages import HopTrace, Open, Output, Step, Successor, TensorHeader
from swarmnode.protocols.records import ModelId
from swarmnode.protocols.tensors import common_codecs

from .hop import HopLink, open_hop

__all__ = ["Answer", "Ring", "UnderWay", "open_ring"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a step.

    Attributes:
        tensor, body: the last block's output for the tokens that were to be kept; read it with `hidden`.
        peer: who sent it.
        seconds: from sending the step to its answer.
        trace: what each server says it spent on it.
    """

    tensor: TensorHeader
    body: memoryview
    peer: str
    seconds: float
    trace: tuple[HopTrace, ...]

    def hidden(self) -> torch.Tensor:
        """The output `[rows, tokens, hidden_size]`. On the torch thread. Raises `ProtocolViolation`."""
        try:
            return tensor_from_bytes(self.tensor, self.body)
        except ProtocolViolation as violation:
            raise ProtocolViolation(violation.message, hint=violation.hint, peer=self.peer) from None

    @property
    def outside_seconds(self) -> float:
        """Of `seconds`, what no server spent on waiting for its turn or computing."""
        return max(0.0, self.seconds - sum(hop.queue_us + hop.compute_us for hop in self.trace) / 1e6)


class UnderWay:
    """A step that was sent and is not answered yet."""

    __slots__ = ("answer", "answered", "keep", "segments", "sent", "shape")

    def __init__(self, shape: tuple[int, int, int], keep: int, segments: tuple[int, ...]) -> None:
        self.shape = shape
        self.keep = keep
        self.segments = segments
        self.sent = time.perf_counter()
        self.answered = trio.Event()
        self.answer: Answer | None = None


class Ring:
    """A session open on every hop of a route. Made by `open_ring`; `run` it in a task that outlives every step.

    Steps are answered in any order. Giving up on an answer is safe: it is dropped when it comes.

    Attributes:
        dtype: in which hidden states travel.
        codecs: that may be used, the one we like best first.
        max_step_tokens: most tokens of one step.
    """

    def __init__(
        self, route: Route, links: Sequence[HopLink], dtype: str, codecs: tuple[int, ...], compression: Compression
    ) -> None:
        self.route = route
        self.dtype = dtype
        self.codecs = codecs
        self._compression = compression
        self._links = tuple(links)
        self._pending: dict[int, UnderWay] = {}
        self._next_step = 0
        self._changed = trio.Event()
        self._closing = trio.Event()
        self._closed = trio.Event()
        self._failure: SwarmnodeError | None = None
        opened = [link.opened for link in links]
        self.max_step_tokens = min(PREFILL_CHUNK_TOKENS, *(each.max_step_tokens for each in opened))
        self._max_in_flight = min(MAX_IN_FLIGHT_STEPS, *(each.max_in_flight for each in opened))

    async def run(self) -> None:
        """Keep all hops alive until `close`, or until one of them fails, which every waiting step then raises."""
        hops = [partial(self._run_hop, index) for index in range(len(self._links))]
        try:
            await race(*hops, self._closing.wait)
        except SwarmnodeError as error:
            self._failure = error
        finally:
            if self._failure is None:
                self._failure = PeerLost("The session is closed.", hint="Open a new one.")
            self._tell()
            with trio.CancelScope(shield=True):
                await together(*(link.close for link in self._links))
            self._closed.set()

    def encode(self, hidden: torch.Tensor) -> tuple[TensorHeader, Buffer]:
        """Hidden states `[rows, tokens, hidden_size]` as they are sent to the first hop now. On the torch thread."""
        rows, tokens, hidden_size = hidden.shape
        plain = TensorHeader(self.dtype, (rows, tokens, hidden_size))
        codec = send_codec(self._compression, plain, self.codecs, self._links[0].way)
        return tensor_to_bytes(hidden, self.dtype, codec)

    def close(self) -> None:
        """Let go of all servers. Returns at once; `run` does it."""
        self._closing.set()

    async def closed(self) -> None:
        """Wait until all servers have been let go."""
        await self._closed.wait()

    async def submit(
        self, tensor: TensorHeader, body: Buffer, *, position: int, keep: int, segments: tuple[int, ...] = ()
    ) -> UnderWay:
        """Send a step into the ring, waiting while too many are under way.

        Args:
            segments: lengths of the steps in which its tokens came first, if they are sent again.

        Raises:
            SwarmnodeError: whatever ended the session.
        """
        while len(self._pending) >= self._max_in_flight:
            self._check()
            await self._changed.wait()
        self._check()
        number = self._next_step
        self._next_step += 1
        step = self._pending[number] = UnderWay(tensor.shape, keep, segments)
        try:
            await self._links[0].send(Step(number, position, keep, tensor, segments=segments), body)
        except PeerLost:
            await self._failed()
        except trio.Cancelled:
            del self._pending[number]  # it did not go out, so no answer will free its place
            raise
        return step

    async def answer(self, step: UnderWay) -> Answer:
        """The answer to a step that was submitted. Raises as `submit`."""
        with trio.move_on_after(STEP_SECONDS):
            await step.answered.wait()
        if step.answer is not None:
            return step.answer
        self._check()
        raise PeerLost(
            f"No answer came from the servers in {STEP_SECONDS:.0f} seconds, although all of them are there.",
            hint="They may be overloaded: ask again later.",
        )

    async def _run_hop(self, index: int) -> None:
        await self._links[index].run(partial(self._receive, index))

    async def _failed(self) -> None:
        """A hop cannot be written to: wait for its own task to say why."""
        while self._failure is None:
            await self._changed.wait()
        raise self._failure

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _tell(self) -> None:
        """Wake those who wait for room; on failure those who wait for answers too."""
        self._changed.set()
        self._changed = trio.Event()
        if self._failure is not None:
            for pending in self._pending.values():
                pending.answered.set()

    def _receive(self, index: int, output: Output, body: memoryview) -> None:
        pending = self._pending.get(output.step)
        if pending is None:
            if output.step >= self._next_step:
                raise self._violation(index, f"answered step {output.step}, which was never sent")
            return  # it came twice, round a broken link
        if output.tensor.codec not in self.codecs:
            raise self._violation(index, f"sent codec {output.tensor.codec}, which the session does not allow")
        if output.next_block < self.route.num_blocks:
            self._send_on(index, output, body, pending)
            return
        rows, _, hidden_size = pending.shape
        if index != len(self._links) - 1 or output.tensor.shape != (rows, pending.keep, hidden_size):
            raise self._violation(index, f"gave {list(output.tensor.shape)} for the end of a step")
        seconds = time.perf_counter() - pending.sent
        pending.answer = Answer(output.tensor, body, self._links[index].hop.peer, seconds, output.trace)
        pending.answered.set()
        del self._pending[output.step]
        self._tell()

    def _send_on(self, index: int, output: Output, body: memoryview, pending: UnderWay) -> None:
        """Carry a step to the hop whose predecessor could not reach it."""
        next_index = index + 1
        if next_index >= len(self._links) or output.next_block != self._links[next_index].hop.start:
            raise self._violation(index, f"gave back a step for block {output.next_block}, where no hop begins")
        if output.tensor.shape != pending.shape:
            raise self._violation(index, f"made {list(output.tensor.shape)} of {list(pending.shape)}")
        step = Step(output.step, output.position, pending.keep, output.tensor, output.trace, pending.segments)
        self._links[next_index].send_soon(step, body)

    def _violation(self, index: int, what: str) -> ProtocolViolation:
        hop = self._links[index].hop
        return ProtocolViolation(
            f"Peer {hop.peer}, which runs blocks {hop.start}:{hop.end}, {what}.",
            hint="Its version may differ, or it is broken: ask again with other servers.",
            peer=hop.peer,
            span=(hop.start, hop.end),
        )


async def open_ring(
    network: Network,
    route: Route,
    model: ModelId,
    *,
    dtype: str,
    max_tokens: int,
    public_tokens: int = 0,
    compression: Compression = "auto",
) -> Ring:
    """Open a session on every hop of a route at once, each told its neighbours.

    Args:
        dtype: in which hidden states travel.
        max_tokens: how many the session may come to hold.
        public_tokens: how many of its first tokens are no secret.
        compression: what may travel in it, between servers too, as far as all of them read it.

    Raises:
        SwarmnodeError: of the first hop that cannot be opened, as `open_hop`; `peer` says which. Nothing stays open.
    """
    hops = route.hops
    codecs = common_codecs(offered_codecs(compression), *(hop.codecs for hop in hops))
    sessions = [secrets.token_bytes(SESSION_ID_BYTES) for _ in hops]
    links: dict[int, HopLink] = {}

    async def open_one(index: int) -> None:
        last = index == len(hops) - 1
        successor = None if last else Successor(hops[index + 1].peer, hops[index + 1].addrs, sessions[index + 1])
        asked = Open(
            session=sessions[index],
            model=model,
            start=hops[index].start,
            end=hops[index].end,
            dtype=dtype,
            codecs=codecs,
            rows=1,
            max_tokens=max_tokens,
            predecessor=hops[index - 1].peer if index else None,
            successor=successor,
            public_tokens=public_tokens,
            adapter=route.adapter,
        )
        links[index] = await open_hop(network, hops[index], asked)

    try:
        await together(*(partial(open_one, index) for index in range(len(hops))))
    except BaseException:
        with trio.CancelScope(shield=True):
            for link in links.values():
                await link.reset()
        raise
    return Ring(route, [links[index] for index in range(len(hops))], dtype, codecs, compression)
