"""Join a swarm and let it finish one prompt.

    python examples/one_shot.py "Once upon a time" --join /ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3Koo…

`swarmnode bootstrap` and `swarmnode serve` print the address to join.
"""

from __future__ import annotations

import argparse

import trio

import swarmnode


async def main() -> None:
    parser = argparse.ArgumentParser(description="Let a swarm finish a prompt.")
    parser.add_argument("prompt")
    parser.add_argument("--join", nargs="+", required=True, metavar="MULTIADDR")
    parser.add_argument("--model", help="needed when the swarm serves several")
    told = parser.parse_args()

    async with swarmnode.open_node(join=told.join, listen=()) as node:
        model = await node.load(told.model)
        answer = model.generate(told.prompt, max_new_tokens=64)
        async for piece in answer:
            print(piece, end="", flush=True)
        assert answer.route is not None
        print(f"\n\n{answer.tokens_per_second:.1f} tokens per second over {len(answer.route.hops)} servers")


if __name__ == "__main__":
    try:
        trio.run(main)
    except swarmnode.SwarmnodeError as error:
        raise SystemExit(f"{error.message}\n{error.hint}") from None
