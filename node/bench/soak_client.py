"""The clients of a soak, several in one process: what they ask, how they break off, what they say of it line by line.

Each line on standard output is one JSON object with an `event`:

    answered    an answer was read to its end and right: `tokens`, `seconds`, `refused` (how often before), `replays`
    wrong       what came is not what transformers says: `expected`, `got`
    cancelled   the client broke off: `how`
    refused     a server said "not now": `message`, `retry_after_seconds`
    failed      anything else went wrong: `code`, `message`
    unfinished  the time was over: `seconds` it had been asking, `refused`
    left        all nodes are closed; so many `descriptors` more are open than before them, `threads` run
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Final

import trio

from swarmnode.errors import PeerBusy, SwarmnodeError
from swarmnode.models.settings import Sampling
from swarmnode.node.cli.libraries import set_up_libraries
from swarmnode.node.client.generation import Generation
from swarmnode.node.client.session import Session
from swarmnode.node.library import Model, open_node

from .soak_cases import Case, read_cases

__all__ = ["main"]

Manner = Callable[[Case], Awaitable[None]]

CLIENTS_PER_NODE: Final = 2
"""Two clients are one peer to the servers, so that turns and shares between peers count, too."""

THINK_SECONDS: Final = 1.0
"""Mean time between a client's answers."""

AWAY_SECONDS: Final = (5.0, 9.0)
"""How long a client that walks away in the middle of a talk stays away: its session is idle by then."""

CANCEL_SECONDS: Final = 4.0
"""A client that breaks off by the clock does so within this time, often before its first token."""


def main(argv: Sequence[str]) -> int:
    """Ask until the time is over."""
    parser = argparse.ArgumentParser(prog="soak clients")
    parser.add_argument("name")
    parser.add_argument("--join", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--json", action="store_true", help="as always")
    asked = parser.parse_args(argv)
    set_up_libraries(debug=False)
    import torch

    torch.set_num_threads(1)
    before = len(os.listdir("/proc/self/fd"))
    trio.run(_ask_all, asked)
    gc.collect()  # a closed node is a cycle of many objects, and its sockets go with them
    _say("left", descriptors=len(os.listdir("/proc/self/fd")) - before, threads=threading.active_count())
    return 0


async def _ask_all(asked: argparse.Namespace) -> None:
    cases = read_cases(asked.cases)
    async with AsyncExitStack() as stack:
        clients = []
        for number in range(asked.clients):
            if number % CLIENTS_PER_NODE == 0:
                node = await stack.enter_async_context(open_node(join=[asked.join], listen=(), compression="lossless"))
                model = await node.load(asked.model, dtype="float32", device="cpu")
            clients.append(Client(model, cases, Random(asked.seed * 1000 + number)))
        _say("ready")
        with trio.move_on_after(asked.seconds):
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(client.run)
        for client in clients:
            client.tell_unfinished()


class Client:
    """Asks one thing after the other, in one of several manners."""

    def __init__(self, model: Model, cases: Sequence[Case], dice: Random) -> None:
        self._model = model
        self._cases = cases
        self._dice = dice
        self._asking_since: float | None = None
        self._refused = 0

    async def run(self) -> None:
        """For ever."""
        manners = {self._talk: 5, self._read: 2, self._cancel: 3, self._cancel_turn: 2, self._drop: 1}
        while True:
            await trio.sleep(self._dice.expovariate(1 / THINK_SECONDS))
            case = self._dice.choice(self._cases)
            (manner,) = self._dice.choices(list(manners), list(manners.values()))
            self._asking_since, self._refused = time.monotonic(), 0
            while not await self._tried(manner, case):
                pass
            self._asking_since = None

    def tell_unfinished(self) -> None:
        """Say how long what is asked now has been asked for."""
        if self._asking_since is not None:
            _say("unfinished", seconds=time.monotonic() - self._asking_since, refused=self._refused)

    async def _tried(self, manner: Manner, case: Case) -> bool:
        """Whether it is over with; a refusal is waited out as the server said, and tried again."""
        try:
            await manner(case)
        except PeerBusy as busy:
            self._refused += 1
            _say("refused", message=busy.message, hint=busy.hint, retry_after_seconds=busy.retry_after_seconds)
            await trio.sleep(busy.retry_after_seconds or THINK_SECONDS)
            return False
        except SwarmnodeError as error:
            _say("failed", code=error.code, message=error.message)
        return True

    async def _talk(self, case: Case) -> None:
        """Two turns in one session, now and then with a long pause between them."""
        async with self._model.session(max_tokens=case.tokens) as session:
            await self._turn(session, case.prompt, case.answer)
            if self._dice.random() < 0.4:
                await trio.sleep(self._dice.uniform(*AWAY_SECONDS))
            await self._turn(session, case.more, case.more_answer)

    async def _read(self, case: Case) -> None:
        """One answer, in a session of its own."""
        generation = self._model.generate(case.prompt, sampling=_greedy(case.answer))
        await self._read_all(generation, case.answer, None)

    async def _cancel(self, case: Case) -> None:
        """As Ctrl-C does it: at any moment, also before the session is open."""
        with trio.move_on_after(self._dice.uniform(0, CANCEL_SECONDS)) as scope:
            await self._read(case)
        if scope.cancelled_caught:
            _say("cancelled", how="by the clock")

    async def _cancel_turn(self, case: Case) -> None:
        """A turn is broken off, taken back, and asked again in the same session."""
        async with self._model.session(max_tokens=case.tokens) as session:
            with trio.move_on_after(self._dice.uniform(0, CANCEL_SECONDS)) as scope:
                await self._turn(session, case.prompt, case.answer)
            if scope.cancelled_caught:
                _say("cancelled", how="in a session")
                session.truncate(self._dice.choice([0, min(session.position, len(case.prompt) - 1)]))
                await self._turn(session, case.prompt[session.position :], case.answer)
            await self._turn(session, case.more, case.more_answer)

    async def _drop(self, case: Case) -> None:
        """An answer is read in part and thrown away without a word."""
        generation = self._model.generate(case.prompt, sampling=_greedy(case.answer))
        async for _ in generation:
            if self._dice.random() < 0.2:
                break
        self._compare(generation.ids, case.answer[: len(generation.ids)])
        _say("cancelled", how="thrown away")

    async def _turn(self, session: Session, prompt: Sequence[int], answer: Sequence[int]) -> None:
        await self._read_all(session.generate(prompt, sampling=_greedy(answer)), answer, session)

    async def _read_all(self, generation: Generation, answer: Sequence[int], session: Session | None) -> None:
        begun = time.monotonic()
        async with generation:
            async for _ in generation:
                pass
        if self._compare(generation.ids, answer):
            took = {"seconds": time.monotonic() - begun, "asked_seconds": time.monotonic() - (self._asking_since or 0)}
            replays = session.replays if session is not None else 0
            _say("answered", tokens=len(answer), refused=self._refused, replays=replays, **took)

    def _compare(self, got: Sequence[int], expected: Sequence[int]) -> bool:
        if list(got) == list(expected):
            return True
        _say("wrong", expected=list(expected), got=list(got))
        return False


def _greedy(answer: Sequence[int]) -> Sampling:
    return Sampling(max_new_tokens=len(answer))


def _say(event: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()
