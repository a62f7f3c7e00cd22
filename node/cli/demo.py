"""`swarmnode demo`: a whole swarm on this machine, a real small model that no process holds whole, one answer."""

from __future__ import annotations

import os
import tempfile
from typing import Any, Final

from swarmnode.models.bundled import BUNDLED_NAME, HUB_TWIN, has_bundled
from swarmnode.models.progress import ProgressEvent
from swarmnode.models.settings import Sampling
from swarmnode.node.demo import (
    DEMO_BLOCKS,
    begin_bootstrap,
    equal_shares,
    make_servers,
    process_environment,
    serve_shares,
)
from swarmnode.node.processes import OwnProcess, listening_to

from .answers import tell
from .call import Call
from .events import Process
from .generate import read_prompt
from .main import main

__all__ = ["run"]

DEFAULT_PROMPT: Final = "What is the capital of France?"


def run(call: Call) -> None:
    """Start the swarm, ask it once, end it."""
    settings = call.settings
    prompt = DEFAULT_PROMPT if settings.prompt is None else read_prompt(settings.prompt)
    sampling = Sampling(max_new_tokens=settings.max_new_tokens)
    model = BUNDLED_NAME if has_bundled() else HUB_TWIN
    shares = equal_shares(DEMO_BLOCKS, settings.servers)
    with tempfile.TemporaryDirectory(prefix="swarmnode-demo-", ignore_cleanup_errors=True) as folder:
        # Keys of their own, and no config file: the user's are left alone.
        own = {**process_environment(os.environ), "XDG_STATE_HOME": folder, "XDG_CONFIG_HOME": folder}
        call.voice.note(f"{model}: {DEMO_BLOCKS} blocks over {len(shares)} servers, each a process of its own")
        bootstrap = begin_bootstrap(own)
        call.voice.say(Process(name=bootstrap.name, pid=bootstrap.pid, blocks=None))
        call.voice.note("importing PyTorch and transformers, which takes some seconds …")
        servers = make_servers(len(shares), main)
        for server, blocks in zip(servers, shares, strict=True):
            call.voice.say(Process(name=server.name, pid=server.pid, blocks=blocks))

        async def show() -> None:
            async with listening_to([bootstrap, *servers], lambda process, event: _pass_on(call, process, event)):
                address = await serve_shares(
                    bootstrap, servers, own, model=model, shares=shares, compression=settings.compression
                )
                await _ask(call, address, model, prompt, sampling)

        call.run(show)


async def _ask(call: Call, address: str, name: str, prompt: str, sampling: Sampling) -> None:
    from swarmnode.node.library import open_node

    compression = call.settings.compression
    async with open_node(join=[address], listen=(), compression=compression, progress=call.progress) as node:
        model = await node.load(name)
        call.voice.note(f"> {prompt}")
        await tell(model.generate(prompt, chat=True, sampling=sampling), call.voice)


def _pass_on(call: Call, process: OwnProcess, event: dict[str, Any]) -> None:
    """Show how far a process has come with its blocks."""
    if event["event"] == "progress":
        call.progress(
            ProgressEvent(
                stage=event["stage"],
                what=f"{process.name}: {event['what']}",
                done=event["done"],
                total=event["total"],
                unit=event["unit"],
            )
        )
