"""A server with quantised weights on loopback: it says so, and answers what its blocks make on one machine."""

from __future__ import annotations

import pytest
import torch
import trio

from support.programs import Program
from support.tiny_swarm import PROMPT, read
from swarmnode.errors import BadInput
from swarmnode.models.checkpoint import open_checkpoint
from swarmnode.models.quantised import SCHEMES
from swarmnode.node.library import open_node
from swarmnode.testing import make_tiny_model

WHERE = ("--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--no-mdns", "--cache-tokens", "512")
TOKENS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("quantised") / "model", seed=6))


def greedy(folder: str, scheme: str, prompt: list[int]) -> list[int]:
    """What the same blocks answer in this process, between ends that are as the client has them."""
    checkpoint = open_checkpoint(folder)
    span, ends = checkpoint.load_span(0, checkpoint.num_blocks, quant=scheme), checkpoint.load_ends()  # type: ignore[arg-type]
    state, ids, position = span.open_session(), list(prompt), 0
    while len(ids) < len(prompt) + TOKENS and ids[-1] not in checkpoint.eos_ids:
        hidden = span.step(state, ends.embed(torch.tensor([ids[position:]]), position), position)
        position = len(ids)
        ids.append(int(ends.logits(hidden).argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_process_that_serves_quantised_blocks(folder: str, scheme: str) -> None:
    async def ask() -> None:
        async with open_node(join=[address], listen=(), compression="lossless") as node:
            (model,) = (await node.status()).models
            assert [(server.quantisation, server.dtype) for server in model.servers] == [(scheme, "bfloat16")]
            generation = (await node.load(folder)).generate(PROMPT, max_new_tokens=TOKENS)
            assert await read(generation) == greedy(folder, scheme, list(generation.prompt_ids))

    with Program("serve", folder, "--quant", scheme, "--blocks", "0:4", *WHERE) as server:
        address = server.wait_for("listening")["addrs"][0]
        ready = server.wait_for("ready")
        assert (ready["quantisation"], ready["dtype"]) == (scheme, "bfloat16")
        trio.run(ask)


async def test_no_other_quantisation_is_known(folder: str) -> None:
    async with open_node(listen=(), mdns=False) as node:
        with pytest.raises(BadInput, match="'int3' is no quantisation"):
            await node.serve(folder, quant="int3")
