"""Ten thousand broken frames on every protocol of a running server, then an honest question. A real process."""

from __future__ import annotations

import random
from collections.abc import Sequence

import psutil
import pytest
import trio

import swarmnode
from support.programs import swarm
from support.tiny_swarm import Tiny
from swarmnode.errors import PeerFault
from swarmnode.node.identity import create_identity
from swarmnode.node.net.host import open_host
from swarmnode.node.net.network import Network
from swarmnode.protocols import directory, messages
from swarmnode.protocols.frames import encode_frame
from swarmnode.protocols.ids import INFO, RECORDS, SESSION, ModelId
from swarmnode.protocols.keys import model_key

FRAMES = 10_000
ATTACKERS = 4
MAX_FRAMES_PER_STREAM = 40
DESCRIPTOR_SLACK = 8
# Ours, and those of py-libp2p that any node answers.
PROTOCOLS = (SESSION, RECORDS, INFO, "/ipfs/kad/1.0.0", "/ipfs/id/1.0.0")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def valid_frames(folder: str) -> list[bytes]:
    """Frames that a polite peer may send, of every protocol of ours."""
    model = ModelId(folder, "0" * 40, bytes(32))
    opened = messages.Open(bytes(16), model, 0, 2, "float32", (0,), 1, 64, None, None)
    tensor = messages.TensorHeader("float32", (1, 2, 64))
    said = [
        messages.encode(opened),
        messages.encode(messages.Attach(bytes(16))),
        messages.encode(messages.Step(0, 0, 1, tensor), bytes(tensor.raw_bytes)),
        messages.encode(messages.Ping(1)),
        directory.encode(directory.Find(model_key(folder))),
        directory.encode(directory.Announce(model_key(folder), ((bytes(300), 0.0),))),
        directory.encode(directory.GetInfo()),
    ]
    return [head + bytes(body) for head, body in said]


def broken(frame: bytes, dice: random.Random) -> bytes:
    """A frame as a hostile or a broken peer may send it."""
    kind = dice.randrange(5)
    if kind == 0:
        return dice.randbytes(dice.randrange(1, 300))
    if kind == 1:
        return frame[: dice.randrange(len(frame))]
    if kind == 2:  # the checksum is right, the header is not
        field = dice.choice(["type", "session", "tensor", "key", "lengths", "x"])
        value: object = dice.choice([None, -1, b"x", [], {}])
        return encode_frame({"type": dice.choice(["open", "step", "find", "announce", "ping"]), field: value})[0]
    bent = bytearray(frame)
    for _ in range(dice.randrange(1, 4)):
        bent[dice.randrange(len(bent))] = dice.randrange(256)
    return bytes(bent)


async def attack(network: Network, target: str, frames: int, valid: Sequence[bytes], dice: random.Random) -> int:
    """Throw so many frames at a server, many a stream, on all protocols in turn; how many were thrown."""
    peer = await network.connect(target)
    thrown = 0
    while thrown < frames:
        try:
            stream = await network.open_stream(peer, PROTOCOLS[thrown % len(PROTOCOLS)], [target.partition("/p2p/")[0]])
        except PeerFault:
            await network.connect(target)  # it had enough of the connection; an honest peer may come back too
            continue
        try:
            for _ in range(dice.randrange(1, MAX_FRAMES_PER_STREAM)):
                thrown += 1
                await stream.send_all(broken(dice.choice(valid), dice))
        except PeerFault:
            pass  # what we want: the server has had enough
        finally:
            await stream.reset()
    return thrown


async def test_ten_thousand_broken_frames_then_an_honest_question(llama: Tiny) -> None:
    prompt = list(range(5, 30))
    expected = llama.greedy(prompt, 12)
    thrown: list[int] = []
    with swarm(str(llama.folder), [(0, llama.whole.config.num_hidden_layers)]) as (address, (server,)):
        load = server.wait_for("load")
        (listening,) = [event for event in server.events if event["event"] == "listening"]
        process = psutil.Process(server.process.pid)

        async def run_attacker(number: int) -> None:
            async with open_host(create_identity(), listen=()) as network:
                dice = random.Random(number)
                valid = valid_frames(llama.folder.name)
                thrown.append(await attack(network, listening["addrs"][0], FRAMES // ATTACKERS, valid, dice))

        descriptors = process.num_fds()
        async with trio.open_nursery() as nursery:
            for number in range(ATTACKERS):
                nursery.start_soon(run_attacker, number)
        assert sum(thrown) >= FRAMES

        async with swarmnode.open_node(join=[address], listen=(), compression="lossless") as node:
            model = await node.load(str(llama.folder), dtype="float32", device="cpu")
            generation = model.generate(prompt, max_new_tokens=12)
            async for _ in generation:
                pass
        assert list(generation.ids) == expected
        at_rest = server.wait_until("load", lambda now: now["sessions"] == 0 and now["streams"] == 0)
        assert at_rest["cache_tokens_left"] == load["cache_tokens_left"]
        assert process.num_fds() <= descriptors + DESCRIPTOR_SLACK
        assert "Traceback" not in server.log
