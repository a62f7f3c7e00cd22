"""Servers of a tiny real model on a network in memory, and a client that speaks the protocol by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import torch
import trio

from swarmnode.models.checkpoint import Checkpoint
from swarmnode.models.span import Piece
from swarmnode.node.net.memory import MemoryNet, MemoryNetwork
from swarmnode.node.server.engine import Engine
from swarmnode.node.server.handler import SessionHandler
from swarmnode.node.server.prefix import cut
from swarmnode.node.streams import MessageStream
from swarmnode.node.tensors import tensor_from_bytes, tensor_to_bytes
from swarmnode.node.torch_thread import TorchThread
from swarmnode.protocols.ids import SESSION
from swarmnode.protocols.messages import Message, Open, Opened, Output, Step
from swarmnode.protocols.records import ModelId

ANSWER_SECONDS = 30


@asynccontextmanager
async def held(thread: TorchThread) -> AsyncIterator[trio.Event]:
    """The torch thread does nothing else until the event is set."""
    token, begun, gate = trio.lowlevel.current_trio_token(), trio.Event(), trio.Event()

    async def wait() -> None:
        begun.set()
        await gate.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread.run, lambda: trio.from_thread.run(wait, trio_token=token))
        await begun.wait()
        yield gate


class Server:
    """One server: its place in the network, its handler, its span for comparison."""

    def __init__(self, network: MemoryNetwork, handler: SessionHandler, engine: Engine) -> None:
        self.network = network
        self.handler = handler
        self.engine = engine

    @property
    def peer(self) -> str:
        return self.network.peer

    async def idle(self, poll_seconds: float = 0.001) -> None:
        """Wait until no session is left."""
        with trio.fail_after(ANSWER_SECONDS):
            while self.handler.sessions or self.engine.statistics().sessions:  # noqa: ASYNC110 - what is awaited is its end
                await trio.sleep(poll_seconds)


class Talk:
    """A stream on which messages are sent and awaited one by one."""

    def __init__(self, messages: MessageStream) -> None:
        self.messages = messages

    async def say(self, message: Message, body: Any = b"") -> None:
        await self.messages.send(message, body)

    async def hear(self) -> Message:
        return (await self.hear_all())[0]

    async def hear_all(self) -> tuple[Message, memoryview]:
        with trio.fail_after(ANSWER_SECONDS):
            return await self.messages.expect()

    async def step(self, number: int, hidden: torch.Tensor, position: int, *, keep: int | None = None) -> None:
        header, body = tensor_to_bytes(hidden, "float32")
        await self.say(Step(number, position, hidden.shape[1] if keep is None else keep, header), body)

    async def output(self) -> tuple[Output, torch.Tensor]:
        message, body = await self.hear_all()
        assert isinstance(message, Output), message
        return message, tensor_from_bytes(message.tensor, body)

    async def close(self) -> None:
        await self.messages.close()


class Pond:
    """All of a test: the network, the model, servers and clients."""

    def __init__(self, net: MemoryNet, checkpoint: Checkpoint, torch_thread: TorchThread) -> None:
        self.net = net
        self.checkpoint = checkpoint
        self.torch_thread = torch_thread
        self.model = ModelId(checkpoint.name, checkpoint.revision, checkpoint.digest)
        self._peers = 0

    def cut(self, one: Server, other: Server) -> None:
        """Break the streams between two peers, and nothing else."""
        for stream in list(one.network._links[other.peer]):
            stream.drop()

    def network(self) -> MemoryNetwork:
        self._peers += 1
        return self.net.network(self._peers)

    def serve(
        self, start: int, end: int, *, cache_tokens: int = 1000, preferred: frozenset[str] = frozenset(), **options: Any
    ) -> Server:
        """A server of these blocks, online; `options` are `Engine`'s."""
        span = self.checkpoint.load_span(start, end, dtype=torch.float32)
        network = self.network()
        engine = Engine(span, self.torch_thread, cache_tokens=cache_tokens, **options)
        handler = SessionHandler(network, self.model, engine, preferred=preferred)
        handler.state = "online"
        network.handle(SESSION, handler)
        return Server(network, handler, engine)

    def open_message(self, first: int, last: int, **changes: Any) -> Open:
        asked = Open(
            session=bytes([first]) * 16,
            model=self.model,
            start=first,
            end=last,
            dtype="float32",
            codecs=(0,),
            rows=1,
            max_tokens=100,
        )
        return replace(asked, **changes)

    async def talk(self, network: MemoryNetwork, server: Server) -> Talk:
        stream = await network.open_stream(server.peer, SESSION, server.network.addrs)
        return Talk(MessageStream(stream))

    async def opened(self, network: MemoryNetwork, server: Server, asked: Open) -> Talk:
        talk = await self.talk(network, server)
        await talk.say(asked)
        answer = await talk.hear()
        assert isinstance(answer, Opened), answer
        return talk

    def hidden(self, tokens: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(1, tokens, self.checkpoint.hidden_size, generator=torch.Generator().manual_seed(seed))

    def run(self, start: int, end: int, *steps: torch.Tensor) -> list[torch.Tensor]:
        """What blocks `start:end` make of these steps, computed right here."""
        span = self.checkpoint.load_span(start, end, dtype=torch.float32)
        cache = span.open_session()
        return [span.step(cache, hidden, cache.position) for hidden in steps]

    def run_deterministically(self, start: int, end: int, *steps: torch.Tensor) -> list[torch.Tensor]:
        """The same in the arithmetic of sessions that share passes."""
        span = self.checkpoint.load_span(start, end, dtype=torch.float32)
        cache = span.open_session()
        return [span.run([Piece(cache, hidden, cache.position)], deterministic=True)[0] for hidden in steps]

    def run_cut(self, start: int, end: int, block_tokens: int, *steps: torch.Tensor) -> list[torch.Tensor]:
        """As `run_deterministically`, with attention cut into blocks of so many tokens."""
        span = self.checkpoint.load_span(start, end, dtype=torch.float32)
        cache, outs = span.open_session(), []
        for hidden in steps:
            segments = cut(cache.position, [hidden.shape[1]], block_tokens)
            outs += span.run([Piece(cache, hidden, cache.position, segments)], deterministic=True)
        return outs
