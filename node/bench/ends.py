"""One end of a transport's benchmark, a process of its own: `ends KIND listen`, `ends KIND bench ADDR …`.

Says what happens in lines of JSON, in the words that the ends in Go (`tests/interop/go`) and in Rust
(`native/transport/examples/quinn.rs`) use too. *Pong* sends each message back once it is whole, *sink* answers with one
byte after the last.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from .carriers import CARRIERS, Carrier, OpenPipe, Pipe

__all__ = ["PONG", "SINK"]

PONG = "/swarmnode/bench/pong/1"
SINK = "/swarmnode/bench/sink/1"
PIECE_BYTES = 1 << 20
LOAD_SIZE = 512
"""Rows of the square matrices that the torch load multiplies: a millisecond or so, as a small layer takes."""


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


async def pong(pipe: Pipe) -> None:
    while message := await pipe.receive():
        await pipe.send(message)


async def sink(pipe: Pipe) -> None:
    """Messages up to an empty one, then one in answer."""
    while await pipe.receive():
        pass
    await pipe.send(b"1")


async def listen(carrier: Carrier) -> None:
    """Serve until nobody holds our standard input any more."""
    async with carrier.listening({PONG: pong, SINK: sink}) as addr:
        say("listening", addrs=[addr])
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def bench(carrier: Carrier, addr: str, numbers: Sequence[int]) -> None:
    """Connect so often, open so many streams, send so many bytes; then so many messages of a size, and so on."""
    connects, opens, bulk_bytes, *messages = numbers
    seconds: list[float] = []
    for _ in range(connects - 1):
        async with _connected(carrier, addr, seconds):
            pass
    async with _connected(carrier, addr, seconds) as open_pipe:
        say("connect", seconds=seconds)
        seconds = []
        for _ in range(opens):
            begun = time.perf_counter()
            async with open_pipe(PONG) as pipe:
                await pipe.send(b"x")
                await pipe.receive()
                seconds.append(time.perf_counter() - begun)
                await pipe.send(b"")
        say("open", seconds=seconds)
        async with open_pipe(SINK) as pipe:
            say("bulk", bytes=bulk_bytes, seconds=[await _pour(pipe, bulk_bytes)])
        async with open_pipe(PONG) as pipe:
            for size, rounds in zip(messages[::2], messages[1::2], strict=True):
                body = bytes(size)
                say("pong", bytes=size, seconds=[await _trip(pipe, body) for _ in range(rounds)])
            await pipe.send(b"")
    say("done")


@asynccontextmanager
async def _connected(carrier: Carrier, addr: str, seconds: list[float]) -> AsyncIterator[OpenPipe]:
    async with carrier.dialling() as dial:
        begun = time.perf_counter()
        open_pipe = await dial(addr)
        seconds.append(time.perf_counter() - begun)
        yield open_pipe


async def _pour(pipe: Pipe, count: int) -> float:
    piece = bytes(PIECE_BYTES)
    begun = time.perf_counter()
    for _ in range(count // PIECE_BYTES):
        await pipe.send(piece)
    await pipe.send(b"")
    await pipe.receive()
    return time.perf_counter() - begun


async def _trip(pipe: Pipe, body: bytes) -> float:
    begun = time.perf_counter()
    await pipe.send(body)  # the other end answers only what is whole, so nobody waits for both of us
    answer = await pipe.receive()
    elapsed = time.perf_counter() - begun
    if len(answer) != len(body):
        raise RuntimeError("the other end did not send back what it was sent")
    return elapsed


def _multiply_for_ever() -> None:
    import torch

    torch.set_num_threads(1)
    one = torch.rand(LOAD_SIZE, LOAD_SIZE)
    while True:
        torch.mm(one, one)


def main() -> None:
    kind, what, *rest = sys.argv[1:]
    if rest and rest[0] == "--load":
        rest = rest[1:]
        threading.Thread(target=_multiply_for_ever, daemon=True).start()
    if what == "listen":
        trio.run(listen, CARRIERS[kind]())
    else:
        trio.run(bench, CARRIERS[kind](), rest[0], [int(text) for text in rest[1:]])


if __name__ == "__main__":
    main()
