"""Several servers in one process, over real sockets: `nodes.py MODEL START:END [MODEL START:END …]`.

Prints the address to join by when all of them are ready, and serves until its standard input ends. Importing torch once
for all of them is what makes it quicker than a process each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path

__all__ = ["nodes"]

LISTEN = ("/ip4/127.0.0.1/udp/0/quic-v1",)


@contextmanager
def nodes(offers: Sequence[tuple[Path, tuple[int, int]]]) -> Iterator[str]:
    """The address of a swarm in which one server each holds these blocks of these models."""
    arguments = [word for model, (start, end) in offers for word in (str(model), f"{start}:{end}")]
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, "the servers did not start"
            yield address
        finally:
            process.kill()


async def stand(offers: Sequence[tuple[str, str]]) -> None:
    """Serve all of them until nobody holds our standard input any more."""
    import trio

    from swarmnode.node.library import open_node

    async with AsyncExitStack() as stack:
        door = await stack.enter_async_context(open_node(listen=LISTEN))
        nursery = await stack.enter_async_context(trio.open_nursery())
        for model, blocks in offers:
            node = await stack.enter_async_context(open_node(listen=LISTEN, join=door.addrs))
            await nursery.start(partial(node.serve, model, blocks=blocks, dtype="float32", device="cpu"))
        print(door.addrs[0], flush=True)
        await trio.lowlevel.wait_readable(0)
        os._exit(0)


if __name__ == "__main__":
    import trio

    words = sys.argv[1:]
    trio.run(stand, list(zip(words[::2], words[1::2], strict=True)))
