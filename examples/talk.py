"""Two turns of a talk in one session: the servers keep what was said, so the second turn computes only what is new.

python examples/talk.py --join /ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3Koo…
"""

from __future__ import annotations

import argparse

import trio

import swarmnode

TURNS = ("Name three rivers of Europe.", "Which of them is the longest?")


async def main() -> None:
    parser = argparse.ArgumentParser(description="Talk with a model of a swarm.")
    parser.add_argument("--join", nargs="+", required=True, metavar="MULTIADDR")
    parser.add_argument("--model", help="needed when the swarm serves several")
    told = parser.parse_args()

    async with swarmnode.open_node(join=told.join, listen=()) as node:
        model = await node.load(told.model)
        async with model.session() as session:
            for turn in TURNS:
                print(f"> {turn}")
                already = session.position
                answer = session.generate(turn, chat=True, max_new_tokens=60)
                async for piece in answer:
                    print(piece, end="", flush=True)
                print(f"\n({len(answer.prompt_ids)} tokens of prompt, {already} were held from before)\n")


if __name__ == "__main__":
    try:
        trio.run(main)
    except swarmnode.SwarmnodeError as error:
        raise SystemExit(f"{error.message}\n{error.hint}") from None
