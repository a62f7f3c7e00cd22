"""Real swarmnode processes for tests: started with --json, read event by event, never left behind."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from types import TracebackType
from typing import Any

__all__ = ["Program", "bootstrap", "first_to_log", "serve", "split_evenly", "swarm"]

# Loading torch and a model on a busy two-core machine takes tens of seconds; only a hang takes this long.
EVENT_SECONDS = 150.0
STOP_SECONDS = 20.0

Event = dict[str, Any]

# Notified by whoever reads a program's log, for each line: one may wait for several programs.
_logged = threading.Condition()


class Program:
    """One `swarmnode ARGS --json` process; `prefix` goes before its command, to run it elsewhere."""

    def __init__(self, *args: str, env: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> None:
        self.args = args
        self.events: list[Event] = []
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._stderr: list[str] = []
        self._log_ended = False
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "swarmnode.node.cli.main", *args, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_events, self._read_log)]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What it has said on stderr."""
        return "".join(self._stderr)

    def wait_for(self, name: str, seconds: float = EVENT_SECONDS) -> Event:
        """The next event of that name; events before it are kept in `events`.

        Raises:
            AssertionError: with the program's own words, when it ends or falls silent first.
        """
        while True:
            try:
                event = self._queue.get(timeout=seconds)
            except queue.Empty:
                raise AssertionError(self.story(f"said nothing for {seconds} s, wanted {name!r}")) from None
            if event is None:
                raise AssertionError(self.story(f"ended before {name!r}"))
            self.events.append(event)
            if event.get("event") == name:
                return event

    def wait_for_log(self, pattern: str, seconds: float = EVENT_SECONDS) -> str:
        """The first line of its log in which the pattern is found, old or new; raises like `wait_for`."""
        return first_to_log({self: pattern}, seconds)

    def wait_until(self, name: str, holds: Callable[[Event], bool], seconds: float = EVENT_SECONDS) -> Event:
        """The newest event of that name once it satisfies `holds`; raises like `wait_for`."""
        while not self._queue.empty():
            event = self._queue.get()
            if event is None:
                raise AssertionError(self.story("ended"))
            self.events.append(event)
        newest = next((event for event in reversed(self.events) if event.get("event") == name), None)
        while newest is None or not holds(newest):
            newest = self.wait_for(name, seconds)
        return newest

    def finish(self, seconds: float = EVENT_SECONDS) -> int:
        """Wait for it to end by itself; its exit code."""
        code = self.process.wait(timeout=seconds)
        for reader in self._readers:
            reader.join(timeout=STOP_SECONDS)
        while (event := self._queue.get(timeout=STOP_SECONDS)) is not None:
            self.events.append(event)
        self._close_pipes()
        return code

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """What a power cut does."""
        self.process.kill()
        self.process.wait(timeout=STOP_SECONDS)

    def stop(self) -> None:
        """Ask politely, then do not ask."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=STOP_SECONDS)
        for reader in self._readers:
            reader.join(timeout=STOP_SECONDS)
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with _logged:
                self._stderr.append(line)
                _logged.notify_all()
        with _logged:
            self._log_ended = True
            _logged.notify_all()

    def story(self, what: str) -> str:
        """What happened to it, with its last words, for a failing test."""
        return f"swarmnode {' '.join(self.args)} {what}; events {self.events[-5:]}; stderr:\n{self.log[-3000:]}"


def first_to_log(patterns: Mapping[Program, str], seconds: float = EVENT_SECONDS) -> str:
    """The first line found with its program's pattern in it, old or new.

    Raises:
        AssertionError: with the programs' own words, when all end without it or so much time passes.
    """
    seen = dict.fromkeys(patterns, 0)
    hits: list[str] = []

    def settled() -> bool:
        for program, pattern in patterns.items():
            fresh = program._stderr[seen[program] :]
            seen[program] += len(fresh)
            hits.extend(line for line in fresh if re.search(pattern, line))
        return bool(hits) or all(program._log_ended for program in patterns)

    with _logged:
        _logged.wait_for(settled, seconds)
    if not hits:
        told = (program.story(f"did not log {pattern!r} within {seconds} s") for program, pattern in patterns.items())
        raise AssertionError("\n".join(told))
    return hits[0]


def bootstrap(*flags: str) -> tuple[Program, str]:
    """A running bootstrap node and the address to join it by."""
    program = Program("bootstrap", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--no-mdns", *flags)
    try:
        listening = program.wait_for("listening")
    except BaseException:
        program.stop()
        raise
    return program, str(listening["addrs"][0])


def serve(join: str, model: str | None, blocks: tuple[int, int], *flags: str) -> Program:
    """A server on loopback that has been told to start; wait for its `ready`."""
    start, end = blocks
    named = [model] if model else []
    where = ["--blocks", f"{start}:{end}", "--join", join, "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--no-mdns"]
    return Program("serve", *named, *where, "--dtype", "float32", *flags)


def split_evenly(num_blocks: int, parts: int) -> list[tuple[int, int]]:
    """`num_blocks` in so many runs whose lengths differ by one at most."""
    cuts = [num_blocks * part // parts for part in range(parts + 1)]
    return list(pairwise(cuts))


@contextmanager
def swarm(model: str | None, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[str, list[Program]]]:
    """A bootstrap node and one ready server for each span: its address, and the servers."""
    with ExitStack() as stack:
        boot, address = bootstrap()
        stack.enter_context(boot)
        servers = [stack.enter_context(serve(address, model, span)) for span in spans]
        for server in servers:
            server.wait_for("ready")
        try:
            yield address, servers
        except BaseException as error:
            for program in (boot, *servers):
                if (code := program.process.poll()) is not None:
                    error.add_note(program.story(f"had ended with {code}"))
            raise
