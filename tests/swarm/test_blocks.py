"""Servers that choose their own blocks: together they cover the model, and move to where they are needed."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from support.programs import Program, bootstrap
from support.tiny_swarm import PROMPT, TOKENS, Tiny, read
from swarmnode.models.cut import quiet_transformers
from swarmnode.models.span import Span
from swarmnode.node import choosing, placement
from swarmnode.node.background import open_background
from swarmnode.node.capacity import LEAST_CACHE_TOKENS
from swarmnode.node.choosing import Choice
from swarmnode.node.identity import state_folder
from swarmnode.node.library import Node, ServerInfo, open_node
from swarmnode.node.net.memory import MemoryNet, open_memory_net
from swarmnode.testing import make_tiny_model

SECONDS = 100


class Grower:
    """One server, and what it said."""

    def __init__(self) -> None:
        self.choices: list[Choice] = []
        self.infos: list[ServerInfo] = []
        self.moved = trio.Event()
        self.ended = trio.Event()
        self.scope = trio.CancelScope()

    @property
    def span(self) -> tuple[int, int]:
        return self.infos[-1].start, self.infos[-1].end

    def move(self, info: ServerInfo) -> None:
        self.infos.append(info)
        self.moved.set()

    async def stop(self) -> None:
        """Leave, as a person would have it leave."""
        self.scope.cancel()
        await self.ended.wait()


class Swarm:
    """A swarm in memory that grows server by server."""

    def __init__(self, net: MemoryNet, model: str, nursery: trio.Nursery) -> None:
        self.servers: list[Grower] = []
        self._net = net
        self._model = model
        self._nursery = nursery
        self._door: list[str] = []
        self._peers = 0

    async def serve(self, **asked: Any) -> Grower:
        """One server more, ready."""
        server = Grower()
        server.infos.append(await self._nursery.start(partial(self._serve, server, asked)))
        self.servers.append(server)
        return server

    async def _serve(self, server: Grower, asked: dict[str, Any], task_status: Any) -> None:
        with server.scope:
            async with self._open() as node:
                serve = partial(node.serve, self._model, dtype="float32", chosen=server.choices.append)
                await serve(**asked, moved=server.move, task_status=task_status)
        server.ended.set()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Node]:
        self._peers += 1
        async with open_node(network=self._net.network(self._peers), join=self._door, compression="lossless") as node:
            self._door = self._door or [node.addrs[0]]
            yield node

    async def require_text_of(self, whole: Tiny) -> None:
        """What comes out is what plain transformers makes."""
        async with self._open() as client:
            model = await client.load(self._model)
            generation = model.generate(PROMPT, max_new_tokens=TOKENS)
            assert await read(generation) == whole.greedy(generation.prompt_ids, TOKENS)


@asynccontextmanager
async def growing(model: Tiny) -> AsyncIterator[Swarm]:
    async with open_memory_net() as net, open_background() as nursery:
        with trio.fail_after(SECONDS):
            yield Swarm(net, str(model.folder), nursery)


def weights(choice: Choice) -> int:
    assert choice.need is not None
    return choice.need.weights


async def test_each_newcomer_takes_what_is_missing(llama: Tiny) -> None:
    async with growing(llama) as swarm:
        first = await swarm.serve(num_blocks=2)
        assert first.span == (0, 2)
        second = await swarm.serve(num_blocks=1)
        assert second.span in ((2, 3), (3, 4))
        await swarm.serve(num_blocks=1)
        assert sorted(each.span for each in swarm.servers) == [(0, 2), (2, 3), (3, 4)]
        assert [[choice.why for choice in each.choices] for each in swarm.servers] == [["first"], ["gap"], ["gap"]]
        assert [each.choices[0].servers for each in swarm.servers] == [0, 1, 2]
        assert weights(first.choices[0]) == 2 * weights(second.choices[0]) > 0
        await swarm.require_text_of(llama)
        late = await swarm.serve(blocks="auto")
        assert (late.span, late.choices[0].why) == ((0, 4), "thin")


async def test_all_blocks_are_taken_where_none_are_named_and_they_fit(llama: Tiny) -> None:
    async with growing(llama) as swarm:
        assert (await swarm.serve()).span == (0, 4)
        assert (await swarm.serve(blocks="1:3")).span == (1, 3)
        assert [[choice.why for choice in each.choices] for each in swarm.servers] == [["all"], []]


async def test_the_cache_is_what_was_asked_for_in_bytes_or_what_there_is_room_for(llama: Tiny) -> None:
    async with growing(llama) as swarm:
        small, large = await swarm.serve(blocks="0:4", cache_memory=1 << 20), await swarm.serve(blocks="0:4")
        (asked,), (free,) = small.infos, large.infos
        assert (1 << 20) - 4096 < asked.cache_bytes <= 1 << 20
        assert asked.cache_bytes * free.cache_tokens == free.cache_bytes * asked.cache_tokens
        assert free.cache_tokens >= LEAST_CACHE_TOKENS
        assert not small.choices
        assert not large.choices  # nothing was left open
        await swarm.require_text_of(llama)


async def test_newcomers_at_the_same_moment_do_not_take_the_same(llama: Tiny) -> None:
    async with growing(llama) as swarm:
        await swarm.serve(blocks="0:1")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(partial(swarm.serve, num_blocks=1))
        assert sorted(each.span for each in swarm.servers) == [(0, 1), (1, 2), (2, 3), (3, 4)]


async def test_a_server_moves_to_a_gap_and_lets_go_of_what_it_held(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(placement, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(placement, "SPREAD_SECONDS", 0.2)

    def spans_of(window: tuple[int, int]) -> int:
        gc.collect()
        return sum(type(each) is Span and (each.start, each.end) == window for each in gc.get_objects())

    async with growing(llama) as swarm:
        front, back = await swarm.serve(blocks="0:2"), await swarm.serve(blocks="2:4")
        mover = await swarm.serve(num_blocks=2)
        held = mover.span
        assert held in ((0, 2), (2, 4))
        # The other half is left by the only one that holds it.
        await (back if held == (0, 2) else front).stop()
        before = spans_of(held)
        await mover.moved.wait()
        assert mover.span == ((2, 4) if held == (0, 2) else (0, 2))
        assert [choice.window for choice in mover.choices] == [held, mover.span]
        assert mover.choices[-1].why == "gap"
        assert spans_of(held) == before - 1
        await swarm.require_text_of(llama)


async def test_what_was_measured_is_announced_at_once_and_measured_again(llama: Tiny) -> None:
    file = state_folder() / "measured.json"
    async with growing(llama) as swarm:
        first = await swarm.serve(blocks="0:4")
        while not file.exists():  # noqa: ASYNC110 - it is written behind the start
            await trio.sleep(0.01)
        await first.stop()
    told = json.loads(file.read_text())
    rates = told["spans"][0]["rates"]
    assert rates["decode_tokens_per_second"] == first.infos[0].decode_tokens_per_second > 0
    told["spans"][0]["rates"] = {"decode_tokens_per_second": 12.5, "prefill_tokens_per_second": 125.0}
    file.write_text(json.dumps(told))
    async with growing(llama) as swarm:
        again = await swarm.serve(blocks="0:4")
        assert again.infos[0].decode_tokens_per_second == 12.5
        assert again.infos[0].prefill_tokens_per_second == 125.0
        while "12.5" in file.read_text():  # noqa: ASYNC110 - it is written behind the start
            await trio.sleep(0.01)


WHERE = ("--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--no-mdns", "--dtype", "float32")


@pytest.mark.slow
def test_programs_that_choose_make_the_text_of_transformers(llama: Tiny) -> None:
    """The same by the command line, over real sockets."""
    boot, address = bootstrap()
    asked = ("serve", str(llama.folder), "--num-blocks", "2", "--join", address, *WHERE)
    with boot, Program(*asked) as one:
        chosen, ready = one.wait_for("chosen"), one.wait_for("ready")
        assert (chosen["blocks"], chosen["why"], chosen["servers"]) == ([0, 2], "first", 0)
        assert ready["blocks"] == [0, 2]
        with Program(*asked) as two:
            chosen, ready = two.wait_for("chosen"), two.wait_for("ready")
            assert (chosen["blocks"], chosen["why"], chosen["servers"]) == ([2, 4], "gap", 1)
            assert ready["blocks"] == [2, 4]
            prompt = ("--prompt", PROMPT, "--max-new-tokens", str(TOKENS), "--compression", "lossless")
            with Program("generate", "--model", str(llama.folder), *prompt, "--join", address) as client:
                done = client.wait_for("done")
    assert [hop["blocks"] for hop in done["route"]] == [[0, 2], [2, 4]]
    ids = AutoTokenizer.from_pretrained(llama.folder)(PROMPT)["input_ids"]
    assert done["ids"] == llama.greedy(ids, TOKENS)


def make_wide_model(folder: Path, blocks: int) -> None:
    """One with 180 MiB of random weights a block in float32, and a tokenizer that nobody needs."""
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=blocks,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=262,
        max_position_embeddings=CACHE_TOKENS,
    )
    make_tiny_model(folder)
    with quiet_transformers():
        LlamaForCausalLM(config).save_pretrained(folder)


CACHE_TOKENS = 4096
SESSION_TOKENS = 3840
"""What a session can hold at most with that cache: its room grows by steps."""
STEP_TOKENS = 960


@pytest.mark.slow
@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("blocks", "numbers"),
    [
        (4, ("--dtype", "float32")),
        (4, ("--quant", "int8")),
        (1, ("--quant", "int4")),  # what takes longest to make
    ],
    ids=["float32", "int8", "int4"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads peaks from /proc")
def test_a_server_keeps_to_the_memory_that_it_reckoned_with(
    tmp_path: Path, blocks: int, numbers: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Loaded, with a full cache, in its largest step, as far from the start of a session as there is cache for."""
    make_wide_model(tmp_path, blocks)
    asked = (
        "serve",
        str(tmp_path),
        "--num-blocks",
        str(blocks),
        "--cache-tokens",
        str(CACHE_TOKENS),
        *WHERE[:-2],
        *numbers,
    )
    with Program(*asked) as server:
        address = server.wait_for("listening")["addrs"][0]
        chosen = server.wait_for("chosen")
        before = memory(server, "VmRSS")
        server.wait_for("ready")
        loaded = memory(server, "VmHWM") - before
        trio.run(fill_a_session, str(tmp_path), address)
        peak = memory(server, "VmHWM") - before
    reckoned = chosen["weights_bytes"] + chosen["cache_bytes"] + chosen["work_bytes"]
    with capsys.disabled():
        print(
            f"\nreckoned {reckoned >> 20} MiB (weights {chosen['weights_bytes'] >> 20}, cache "
            f"{chosen['cache_bytes'] >> 20}, work {chosen['work_bytes'] >> 20}); taken {loaded >> 20} by loading and "
            f"{peak >> 20} in the end"
        )
    assert chosen["weights_bytes"] < peak < reckoned


def memory(server: Program, name: str) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


async def fill_a_session(model: str, address: str) -> None:
    async with open_node(join=[address], listen=()) as node:
        asked = await node.load(model)
        async with asked.session(max_tokens=SESSION_TOKENS) as session:
            hidden = torch.randn(1, STEP_TOKENS, asked.hidden_size, generator=torch.Generator().manual_seed(1))
            for _ in range(SESSION_TOKENS // STEP_TOKENS):
                await session.step(hidden)
