"""A client's pass of training through the blocks of one server: forward, or backward with gradients.

Knows no route: who trains through several servers asks one after another, and keeps what it sent to each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
import trio
from typing_extensions import Buffer

from swarmnode.errors import PeerLost, PeerUnreachable, ProtocolViolation
from swarmnode.node.background import race
from swarmnode.node.deep_prompts import prompt_messages
from swarmnode.node.defaults import OPEN_SECONDS, PING_SECONDS, SILENCE_SECONDS, SILENT_PINGS
from swarmnode.node.net.network import Network
from swarmnode.node.routes import Hop
from swarmnode.node.streams import MessageStream, Silence
from swarmnode.node.tensors import dtype_name, tensor_from_bytes, tensor_to_bytes
from swarmnode.node.torch_thread import TorchThread
from swarmnode.protocols.ids import TRAINING
from swarmnode.protocols.messages import (
    Break,
    Gradients,
    ModelId,
    Ping,
    Pong,
    Prompts,
    Ready,
    Refused,
    Rows,
    TensorHeader,
    Train,
)
from swarmnode.protocols.refusals import error_from
from swarmnode.protocols.tensors import CODEC_LOSSLESS, CODEC_RAW

__all__ = ["SpanGradients", "TrainingSpan"]

CODECS = (CODEC_LOSSLESS, CODEC_RAW)
"""Exact ones: what less does to gradients, and so to what is learnt from them, nobody has measured."""


@dataclass(frozen=True, slots=True)
class SpanGradients:
    """Gradients with regard to what went in: of the rows, and of the prompts if there were any."""

    hidden: torch.Tensor
    prompts: torch.Tensor | None


class TrainingSpan:
    """The blocks of one server, to be trained through.

    Args:
        model: as the server's record names it.
        hop: the server and its blocks, or some of them.
    """

    def __init__(self, network: Network, torch_thread: TorchThread, model: ModelId, hop: Hop) -> None:
        self.hop = hop
        self._network = network
        self._torch_thread = torch_thread
        self._model = model

    def part(self, start: int, end: int) -> TrainingSpan:
        """Some of the blocks."""
        return TrainingSpan(self._network, self._torch_thread, self._model, replace(self.hop, start=start, end=end))

    async def forward(self, hidden: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        """What the blocks make of whole rows, without a cache.

        Args:
            hidden: `[rows, tokens, hidden_size]`; its dtype is that of all that travels.
            prompts: `[blocks of the hop, prompt tokens, hidden_size]`, added to what enters each block.

        Returns:
            Shape and dtype of `hidden`, on the CPU.

        Raises:
            PeerUnreachable, PeerLost, ProtocolViolation: the server does not answer, or nonsense, or went away.
            PeerRefused: or a class below or beside it, by the reason that the server gave.
        """
        return (await self._run(_Pass(self.hop, self._torch_thread, hidden, None, prompts))).hidden

    async def backward(
        self, hidden: torch.Tensor, gradient: torch.Tensor, prompts: torch.Tensor | None = None
    ) -> SpanGradients:
        """The gradients of a loss with regard to what went into `forward`, by what they are for what came out.

        Args:
            hidden, prompts: as they were given to `forward`.
            gradient: of what it returned; same shape.

        Raises:
            As `forward`.
        """
        return await self._run(_Pass(self.hop, self._torch_thread, hidden, gradient, prompts))

    async def _run(self, asked: _Pass) -> SpanGradients:
        messages, ready = await self._open(asked)
        try:
            return await asked.run(messages, ready)
        finally:
            with trio.CancelScope(shield=True):
                await messages.reset()

    async def _open(self, asked: _Pass) -> tuple[MessageStream, Ready]:
        hop = self.hop
        with trio.move_on_after(OPEN_SECONDS):
            messages = MessageStream(await self._network.open_stream(hop.peer, TRAINING, hop.addrs))
            try:
                await messages.send(asked.opening(self._model))
                answer, _ = await messages.expect()
                if isinstance(answer, Refused):
                    span = (hop.start, hop.end)
                    raise error_from(answer.code, answer.message, answer.hint, peer=hop.peer, span=span)
                if not isinstance(answer, Ready):
                    raise asked.violation(f"answered with {answer.type}")
            except BaseException:
                with trio.CancelScope(shield=True):
                    await messages.reset()
                raise
            return messages, answer
        raise PeerUnreachable(
            f"Peer {hop.peer}, which has blocks {hop.start}:{hop.end}, said nothing for {OPEN_SECONDS:.0f} seconds.",
            peer=hop.peer,
            span=(hop.start, hop.end),
        )


class _Pass:
    def __init__(
        self,
        hop: Hop,
        torch_thread: TorchThread,
        hidden: torch.Tensor,
        gradient: torch.Tensor | None,
        prompts: torch.Tensor | None,
    ) -> None:
        self._hop = hop
        self._torch_thread = torch_thread
        self._hidden = hidden
        self._gradient = gradient
        self._prompts = prompts
        self._dtype = dtype_name(hidden.dtype)
        self._answered: list[torch.Tensor] = []
        self._of_prompts: list[torch.Tensor] = []
        self._next_row = 0
        self._next_block = hop.end if prompts is None or gradient is None else hop.start
        self._credit = trio.Semaphore(0)

    def opening(self, model: ModelId) -> Train:
        """What to ask the server."""
        rows, tokens, _ = self._hidden.shape
        return Train(
            model=model,
            start=self._hop.start,
            end=self._hop.end,
            backward=self._gradient is not None,
            dtype=self._dtype,
            codecs=CODECS,
            rows=rows,
            tokens=tokens,
            prompt_tokens=0 if self._prompts is None else self._prompts.shape[1],
        )

    async def run(self, messages: MessageStream, ready: Ready) -> SpanGradients:
        """Send all, as far ahead as the server has agreed to, and take the answers."""
        for _ in range(ready.max_in_flight):
            self._credit.release()
        await race(
            partial(self._send, messages, ready.group_rows),
            partial(self._listen, messages),
            partial(self._watch, messages),
            messages.run_writer,
        )
        return SpanGradients(torch.cat(self._answered), torch.cat(self._of_prompts) if self._of_prompts else None)

    async def _send(self, messages: MessageStream, group_rows: int) -> None:
        if self._prompts is not None:
            coded = partial(prompt_messages, self._prompts, self._hop.start, self._dtype, CODEC_LOSSLESS)
            for prompts, body in await self._torch_thread.run(lambda: list(coded())):
                await messages.post(prompts, body)
        for row in range(0, self._hidden.shape[0], group_rows):
            await self._credit.acquire()
            tensor, body = await self._coded(self._hidden[row : row + group_rows])
            await messages.post(Rows(row, tensor), body)
            if self._gradient is not None:
                tensor, body = await self._coded(self._gradient[row : row + group_rows])
                await messages.post(Gradients(row, tensor), body)
        await trio.sleep_forever()

    async def _listen(self, messages: MessageStream) -> None:
        """Take answers until all are there."""
        wanted = Rows if self._gradient is None else Gradients
        while self._next_row < self._hidden.shape[0] or self._next_block < self._hop.end:
            match await messages.expect():
                case (Rows() | Gradients() as answer, body) if isinstance(answer, wanted):
                    self._check(answer.tensor, answer.row, self._next_row, self._hidden.shape)
                    self._next_row += answer.tensor.shape[0]
                    self._answered.append(await self._torch_thread.run(tensor_from_bytes, answer.tensor, body))
                    self._credit.release()
                case (Prompts() as answer, body) if self._next_row == self._hidden.shape[0]:
                    assert self._prompts is not None
                    start = self._hop.start
                    self._check(answer.tensor, answer.block - start, self._next_block - start, self._prompts.shape)
                    self._next_block += answer.tensor.shape[0]
                    self._of_prompts.append(await self._torch_thread.run(tensor_from_bytes, answer.tensor, body))
                case (Ping(nonce), _):
                    messages.post_soon(Pong(nonce))
                case (Pong(nonce), _):
                    messages.answered(nonce)
                case (Break(code, message, hint), _):
                    raise error_from(code, message, hint, peer=self._hop.peer, span=self._span)
                case (other, _):
                    raise self.violation(f"sent {other.type} in the midst of a pass")

    async def _watch(self, messages: MessageStream) -> None:
        silence = Silence(messages, SILENT_PINGS)
        while True:
            messages.ping()
            await trio.sleep(PING_SECONDS)
            if silence.check():
                raise PeerLost(
                    f"Peer {self._hop.peer} fell silent for {SILENCE_SECONDS:.0f} seconds.",
                    peer=self._hop.peer,
                    span=self._span,
                )

    async def _coded(self, rows: torch.Tensor) -> tuple[TensorHeader, Buffer]:
        return await self._torch_thread.run(tensor_to_bytes, rows, self._dtype, CODEC_LOSSLESS)

    def _check(self, tensor: TensorHeader, first: int, expected: int, whole: torch.Size) -> None:
        fits = tensor.shape[1:] == whole[1:] and tensor.dtype == self._dtype and tensor.codec in CODECS
        if first != expected or not fits or first + tensor.shape[0] > whole[0]:
            raise self.violation(f"answered with a tensor of shape {list(tensor.shape)} that nobody asked for")

    @property
    def _span(self) -> tuple[int, int]:
        return (self._hop.start, self._hop.end)

    def violation(self, what: str) -> ProtocolViolation:
        """What the server did wrong."""
        return ProtocolViolation(f"Peer {self._hop.peer} {what}.", peer=self._hop.peer, span=self._span)
