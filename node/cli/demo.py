"""`swarmnode demo`: a whole swarm on this machine, a real small model that no process holds whole, one answer."""

from __future__ import annotations

import os
import tempfile
from typing import Any, Final

from swarmnode.models.bundled import BUNDLED_NAME, HUB_TWIN, has_bundled
from swarmnode.models.progress import ProgressEvent
from swarmnode.models.settings import Sampling
from swarmnode.node.demo import DEMO_BLOCKS, equal_shares, process_environment, start_bootstrap, start_servers
from swarmnode.node.processes import OwnProcess, open_processes

from .answers import tell
from .call import Call
from .events import Process
from .generate import read_prompt

__all__ = ["run"]

DEFAULT_PROMPT: Final = "Why is the sky blue? Answer in two sentences."


def run(call: Call) -> None:
    """Start the swarm, ask it once, end it."""
    settings = call.settings
    prompt = DEFAULT_PROMPT if settings.prompt is None else read_prompt(settings.prompt)
    sampling = Sampling(max_new_tokens=settings.max_new_tokens)
    model = BUNDLED_NAME if has_bundled() else HUB_TWIN
    shares = equal_shares(DEMO_BLOCKS, settings.servers)
    environ = process_environment(os.environ)
    # The client in this process is one more of them: its torch must find the same settings when it is imported.
    os.environ.update({name: value for name, value in environ.items() if name not in os.environ})

    async def show() -> None:
        with tempfile.TemporaryDirectory(prefix="swarmnode-demo-", ignore_cleanup_errors=True) as folder:
            own = {**environ, "XDG_STATE_HOME": folder, "XDG_CONFIG_HOME": folder}
            async with open_processes(lambda process, event: _pass_on(call, process, event)) as processes:
                call.voice.note(f"{model}: {DEMO_BLOCKS} blocks over {len(shares)} servers, each a process of its own")

                def started(process: OwnProcess, blocks: tuple[int, int] | None) -> None:
                    call.voice.say(Process(name=process.name, pid=process.pid, blocks=blocks))

                address = await start_bootstrap(processes, own, started)
                await start_servers(processes, own, started, model=model, join=address, shares=shares)
                await _ask(call, address, model, prompt, sampling)

    call.run(show)


async def _ask(call: Call, address: str, name: str, prompt: str, sampling: Sampling) -> None:
    from swarmnode.node.library import open_node

    async with open_node(join=[address], listen=(), progress=call.progress) as node:
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
