"""Two servers and forty clients for as long as you like: every text right, every refusal honest, nothing left behind.

The servers have a quarter of the cache that the clients want together, so sessions wait, give way, and are sent again.
Clients read, stop to think, break off at any moment, and now and then a whole process of them is killed. What they read
is compared with plain transformers. All of it happens on this machine, in processes of their own, over loopback.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import trio

from swarmnode.models.bundled import BUNDLED_NAME
from swarmnode.models.checkpoint import open_checkpoint
from swarmnode.node.cli.main import main
from swarmnode.node.defaults import MAX_RETRY_AFTER_SECONDS, MIN_RETRY_AFTER_SECONDS
from swarmnode.node.demo import begin_bootstrap, equal_shares, make_servers, process_environment, serve_shares
from swarmnode.node.processes import OwnProcess, listening_to
from swarmnode.node.waiting import fork_waiting

from . import soak_client
from .random_llama import LIVELY, write_llama
from .soak_cases import Case, make_cases, write_cases

__all__ = ["run"]

SERVERS: Final = 2
CLIENTS_PER_PROCESS: Final = 10
CACHE_SHARE: Final = 0.25
"""Of what all clients want together, the budget of each server."""

REST_SECONDS: Final = 30.0
"""After the last client has left, servers have this long to be at rest. Killed clients are noticed in two seconds."""

MODELS: Final[dict[str, dict[str, Any]]] = {
    "tiny": {"count": 32, "prompt_tokens": (1, 160), "answer_tokens": (4, 40)},
    "smollm2": {"count": 10, "prompt_tokens": (1, 96), "answer_tokens": (4, 12)},
}
DESCRIPTOR_SLACK: Final = 4
"""A connection dialled twice, an epoll of a library."""

MEMORY_SLACK_MIB: Final = 64.0
"""What allocators keep."""

WARM_UP_SECONDS: Final = 30.0

MAX_REFUSALS: Final = 30
"""For one answer. A client that is told "not now" more often, and waits each time as told, starves."""

LOUD: Final = ("ERROR", "CRITICAL", "Traceback", "Error:", "never awaited")
"""What nothing may say in its log."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a server's process holds at one moment."""

    memory_mib: float
    descriptors: int
    threads: int


def run(argv: Sequence[str]) -> dict[str, object]:
    """Run it; the figures, with what is not as it must be in `faults`.

    To be called from the main thread before anything has computed, for its processes are forks of this one.
    """
    parser = argparse.ArgumentParser(prog="scripts/bench soak", description=__doc__)
    parser.add_argument("--model", default="tiny", choices=tuple(MODELS))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--kill-seconds", type=float, default=45.0, help="between kills of a process of clients")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    model, seconds, clients = asked.model, asked.seconds, asked.clients
    with tempfile.TemporaryDirectory(prefix="swarmnode-soak-") as folder:
        environ = process_environment(os.environ)
        environ |= {"XDG_CONFIG_HOME": folder, "XDG_STATE_HOME": folder, "OMP_NUM_THREADS": "1"}
        bootstrap, servers = begin_bootstrap(environ), make_servers(SERVERS, main)
        kills = max(0, math.ceil(seconds / asked.kill_seconds) - 1)
        counts = [min(CLIENTS_PER_PROCESS, clients - begun) for begun in range(0, clients, CLIENTS_PER_PROCESS)]
        crowds = [
            OwnProcess(f"crowd {number}", fork_waiting(soak_client.main)) for number in range(len(counts) + kills)
        ]
        soaking = Soak(bootstrap, servers, crowds, environ, Path(folder))
        return trio.run(partial(soaking.run, model, counts, seconds, asked.seed))


class Soak:
    """The processes of one run, and what they have said so far.

    Args:
        crowds: processes for clients: those of the beginning, and one more for each that is to be killed.
    """

    def __init__(
        self,
        bootstrap: OwnProcess,
        servers: Sequence[OwnProcess],
        crowds: Sequence[OwnProcess],
        environ: dict[str, str],
        folder: Path,
    ) -> None:
        self._bootstrap = bootstrap
        self._servers = servers
        self._crowds = crowds
        self._environ = environ
        self._folder = folder
        self._said: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._logged: list[str] = []
        self._changed = trio.Event()

    async def run(self, model: str, counts: Sequence[int], seconds: float, seed: int) -> dict[str, object]:
        named, num_blocks, cases = await trio.to_thread.run_sync(self._prepare, model, Random(seed))
        write_cases(self._folder / "cases.json", cases)
        wanted = round(sum(counts) * statistics.fmean(case.tokens for case in cases))
        budget = round(CACHE_SHARE * wanted)
        async with listening_to([self._bootstrap, *self._servers, *self._crowds], self._hear, self._hear_log):
            address = await serve_shares(
                self._bootstrap,
                self._servers,
                self._environ,
                model=named,
                shares=equal_shares(num_blocks, SERVERS),
                compression="lossless",
                more=["--dtype", "float32", "--device", "cpu", "--cache-tokens", str(budget)],
            )
            await self._until(self._at_rest)
            empty, idle = [self._newest_load(server) for server in self._servers], self._held()
            early, late = await self._ask(["--join", address, "--model", named], counts, seconds, seed)
            with trio.move_on_after(REST_SECONDS):
                await self._until(lambda: self._at_rest(empty))
            at_rest, after = self._at_rest(empty), self._held()
        faults = [*self._faults(), *_leaks(idle, early, late, after)]
        if not at_rest:
            faults.append(f"the servers are not at rest: {[self._newest_load(server) for server in self._servers]}")
        return {
            "model": model,
            "seconds": seconds,
            "clients": sum(counts),
            "wanted_tokens": wanted,
            "cache_tokens": budget,
            "killed_processes": len(self._crowds) - len(counts),
            **self._figures(seconds),
            "servers": {
                "idle": list(map(asdict, idle)),
                "after_warm_up": list(map(asdict, early)),
                "at_the_end": list(map(asdict, late)),
                "at_rest": list(map(asdict, after)),
            },
            "faults": faults,
        }

    def _prepare(self, model: str, dice: Random) -> tuple[str, int, list[Case]]:
        """The model's name for nodes, its blocks, and the cases."""
        name = BUNDLED_NAME
        if model == "tiny":
            name = str(self._folder / "model")
            write_llama(Path(name), LIVELY)
        checkpoint = open_checkpoint(name)
        return name, checkpoint.num_blocks, make_cases(checkpoint.folder, dice=dice, **MODELS[model])

    async def _ask(
        self, where: Sequence[str], counts: Sequence[int], seconds: float, seed: int
    ) -> tuple[list[Held], list[Held]]:
        """Have the clients ask for so long; what servers hold after the warm-up and at the end."""
        fresh = list(enumerate(self._crowds))
        running: list[tuple[OwnProcess, int]] = []

        def begin(clients: int, left: float) -> None:
            number, crowd = fresh.pop(0)
            told = ["--cases", str(self._folder / "cases.json"), "--clients", str(clients), "--seconds", str(left)]
            crowd.begin(["soak", *where, *told, "--seed", str(seed * len(self._crowds) + number)], self._environ)
            running.append((crowd, clients))

        for clients in counts:
            begin(clients, seconds)
        for crowd, _ in running:
            await crowd.wait_for("ready")
        begun = trio.current_time()
        await trio.sleep(min(WARM_UP_SECONDS, seconds / 3))
        early = self._held()
        for number in range(1, len(fresh) + 1):
            await trio.sleep_until(begun + number * seconds / (len(self._crowds) - len(counts) + 1))
            crowd, clients = running.pop(0)
            crowd.kill()
            begin(clients, begun + seconds - trio.current_time())
        await trio.sleep_until(begun + seconds)
        late = self._held()
        for crowd, _ in running:
            await crowd.wait_for("left")
        return early, late

    def _hear(self, process: OwnProcess, event: dict[str, Any]) -> None:
        self._said[event["event"]].append({**event, "process": process.name})
        self._changed.set()
        self._changed = trio.Event()

    def _hear_log(self, process: OwnProcess, line: str) -> None:
        self._logged.append(f"{process.name}: {line}")

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()

    def _newest_load(self, server: OwnProcess) -> dict[str, Any]:
        return next((each for each in reversed(self._said["load"]) if each["process"] == server.name), {})

    def _at_rest(self, empty: Sequence[dict[str, Any]] | None = None) -> bool:
        """Whether no server has a session or a stream of one, and all of the cache is free as when it was `empty`."""
        loads = [self._newest_load(server) for server in self._servers]
        if not all(loads) or any(load["sessions"] for load in loads):
            return False
        return empty is None or [each["cache_tokens_left"] for each in loads] == [
            each["cache_tokens_left"] for each in empty
        ]

    def _held(self) -> list[Held]:
        return [_held(server.pid) for server in self._servers]

    def _faults(self) -> list[str]:
        """What clients and logs tell of that must not be."""
        faults = [f"{each['process']}: wrong text: {each}" for each in self._said["wrong"]]
        faults += [f"{each['process']}: {each['code']}: {each['message']}" for each in self._said["failed"]]
        faults += [
            f"{each['process']} left {each}" for each in self._said["left"] if each["descriptors"] > DESCRIPTOR_SLACK
        ]
        for each in self._said["refused"]:
            later = each["retry_after_seconds"]
            if later is None or not MIN_RETRY_AFTER_SECONDS <= later <= MAX_RETRY_AFTER_SECONDS:
                faults.append(f"refused without an honest time: {each}")
        most = max((each["refused"] for each in self._said["answered"] + self._said["unfinished"]), default=0)
        if most > MAX_REFUSALS:
            faults.append(f"a client was refused {most} times for one answer")
        faults += [f"logged: {line}" for line in self._logged if any(word in line for word in LOUD)]
        return faults

    def _figures(self, seconds: float) -> dict[str, object]:
        answered = self._said["answered"]
        refused = self._said["refused"]
        reasons = Counter(re.sub(r"\d+", "N", each["message"].partition(" says: ")[2]) for each in refused)
        return {
            "answers": len(answered),
            "tokens_per_second": round(sum(each["tokens"] for each in answered) / seconds, 1),
            "answer_seconds": _percentiles([each["asked_seconds"] for each in answered]),
            "refusals_before_an_answer": dict(sorted(Counter(each["refused"] for each in answered).items())),
            "answers_with_replays": sum(each["replays"] > 0 for each in answered),
            "cancelled": dict(Counter(each["how"] for each in self._said["cancelled"])),
            "wrong": len(self._said["wrong"]),
            "failed": dict(Counter(each["code"] for each in self._said["failed"])),
            "refused": {
                "times": len(refused),
                "reasons": dict(reasons.most_common()),
                "retry_after_seconds": _percentiles([each["retry_after_seconds"] or 0 for each in refused]),
            },
            "unfinished": {
                "clients": len(self._said["unfinished"]),
                "seconds": _percentiles([each["seconds"] for each in self._said["unfinished"]]),
            },
        }


def _held(pid: int) -> Held:
    """What a process holds now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    memory = int(status["VmRSS"].split()[0]) / 1024
    return Held(round(memory, 1), len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]))


def _leaks(idle: list[Held], early: list[Held], late: list[Held], after: list[Held]) -> list[str]:
    """What servers hold at rest that they did not before, and what grew under an even load."""
    leaks = []
    for number in range(len(idle)):
        if after[number].descriptors > idle[number].descriptors + DESCRIPTOR_SLACK:
            leaks.append(f"server {number}: descriptors {idle[number].descriptors} → {after[number].descriptors}")
        if after[number].threads > max(idle[number].threads, early[number].threads):
            leaks.append(f"server {number}: threads {idle[number].threads} → {after[number].threads}")
        if late[number].memory_mib > early[number].memory_mib + MEMORY_SLACK_MIB:
            leaks.append(f"server {number}: memory {early[number].memory_mib} → {late[number].memory_mib} MiB")
    return leaks


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values) or [0.0]
    return {
        "p50": round(ordered[(len(ordered) - 1) // 2], 2),
        "p95": round(ordered[math.ceil(0.95 * (len(ordered) - 1))], 2),
        "max": round(ordered[-1], 2),
    }
