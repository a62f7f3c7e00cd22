"""A simulated server and the clients that talk to it: who waits how long under which policy. Time is only counted.

The server's policies are the real `Schedule` and a simpler one. What a pass takes is a sum of what was measured.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Final, Protocol

from swarmnode.node.server.schedule import DECODE_TOKENS, Chunk, Pending, Priority, Schedule, segments_of

__all__ = ["Chat", "Cost", "Fifo", "Policy", "Scheduled", "Waits", "simulate"]

STEP_TOKENS: Final = 1024
"""Most tokens of a step, as clients cut their prompts."""

IN_FLIGHT: Final = 4
"""Most steps of a prompt under way at once."""

TRIP_SECONDS: Final = (0.02, 0.06)
"""From a token's result to its client's next step: the other hops, the network, the model's ends."""

WARM_UP_SHARE: Final = 0.1
"""Of the time, at its beginning, that is not looked at."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a pass takes in all.

    Attributes:
        blocks: that it goes through.
        base_seconds, token_seconds, segment_seconds: for itself, for each token, for each segment.
        read_seconds: for each token that a segment finds in its cache.
        pair_seconds: for each token and each that it attends to.
    """

    blocks: int
    base_seconds: float
    token_seconds: float
    segment_seconds: float
    read_seconds: float
    pair_seconds: float

    def seconds(self, chunks: Sequence[Carried]) -> float:
        seconds = self.base_seconds
        for chunk in chunks:
            seen = chunk.position
            for tokens in chunk.segments:
                seconds += self.token_seconds * tokens + self.segment_seconds + self.read_seconds * seen
                seconds += self.pair_seconds * tokens * (seen + tokens / 2)
                seen += tokens
        return seconds


@dataclass(frozen=True, slots=True)
class Chat:
    """How a client asks.

    Attributes:
        prompt_tokens: median of its prompts, which spread as a log-normal does.
        spread: of their logarithm; 0 for prompts all alike.
        most_tokens: no prompt has more.
        answer_tokens: mean of its answers, which are as long as chance has it.
        pause_seconds: mean of its pauses between an answer and the next prompt.
    """

    prompt_tokens: int
    spread: float
    most_tokens: int
    answer_tokens: int
    pause_seconds: float


@dataclass(slots=True)
class Waits:
    """What clients saw.

    Attributes:
        first_token: seconds from each prompt to its first token.
        between_tokens: seconds from each token of an answer to its next.
        beside_prefill: those of them in which a prefill ended, or a block of one.
        busy_seconds: of the server.
        prefilled: when one ended last.
    """

    first_token: list[float] = field(default_factory=list)
    between_tokens: list[float] = field(default_factory=list)
    beside_prefill: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    busy_seconds: float = 0.0
    prefilled: float = 0.0


class Policy(Protocol):
    """What runs next.

    Attributes:
        segment_tokens: steps are cut into segments of at most so many tokens; None: as they came.
        interrupted: a pass that holds prefill stops between blocks for decode that waits, when it has run for so many
            times as long as the last decode pass did; None: never.
    """

    segment_tokens: int | None
    interrupted: float | None

    def add(self, step: Waiting) -> object: ...

    def next_batch(self, *, prefill: bool = True) -> list[Carried]: ...

    def done(self, session: bytes) -> None: ...


class Fifo:
    """Steps as they came: one in a pass, or as many as have `batch_tokens` together."""

    segment_tokens: int | None = None
    interrupted: float | None = None

    def __init__(self, batch_tokens: int = 1) -> None:
        self._batch_tokens = batch_tokens
        self._steps: deque[Waiting] = deque()

    def add(self, step: Waiting) -> None:
        self._steps.append(step)

    def next_batch(self, *, prefill: bool = True) -> list[Carried]:
        batch: list[Carried] = []
        sessions: set[bytes] = set()
        tokens = 0
        while self._steps and self._steps[0].session not in sessions:
            tokens += self._steps[0].tokens
            if batch and tokens > self._batch_tokens:
                break
            step = self._steps.popleft()
            sessions.add(step.session)
            batch.append(Chunk(step, 0, step.segments, True))
        return batch

    def done(self, session: bytes) -> None:
        pass


class Scheduled(Schedule["Client"]):
    """The real schedule, with room for any line."""

    def __init__(
        self, batch_tokens: int, *, segment_tokens: int | None = None, interrupted: float | None = None
    ) -> None:
        super().__init__(batch_tokens=batch_tokens, max_steps=1 << 40, max_tokens=1 << 40, max_tokens_per_peer=1 << 40)
        self.segment_tokens = segment_tokens
        self.interrupted = interrupted

    def next_batch(self, *, prefill: bool = True) -> list[Carried]:  # type: ignore[override]
        return super().next_batch(prefill=prefill)


class Client:
    """Asks, reads the answer token by token, pauses, asks again."""

    def __init__(self, peer: str, chat: Chat, clock: Clock, policy: Policy, waits: Waits, *, seed: int) -> None:
        self._peer = peer
        self._chat = chat
        self._clock = clock
        self._policy = policy
        self._waits = waits
        self._random = Random(f"{seed}/{peer}")
        self._asked = 0
        self._prompt_left = self._answer_tokens = self._position = self._under_way = self._said = 0
        self._began = self._spoke = 0.0
        self._session = b""
        self._clock.after(self._random.uniform(0.0, chat.pause_seconds), self._ask)

    def result(self, step: Waiting) -> None:
        """A step has come back."""
        self._under_way -= 1
        if self._prompt_left or self._under_way:
            self._send_prompt()
            return
        now = self._clock.now
        if self._clock.counts:
            if step.tokens > 1 or self._said == 0:
                self._waits.first_token.append(now - self._began)
            else:
                self._waits.between_tokens.append(now - self._spoke)
                if self._waits.prefilled > self._spoke:
                    self._waits.beside_prefill.append(now - self._spoke)
        self._spoke = now
        self._said += 1
        if self._said < self._answer_tokens:
            self._clock.after(self._random.uniform(*TRIP_SECONDS), self._send, 1)
        else:
            self._clock.after(self._random.expovariate(1 / self._chat.pause_seconds), self._ask)

    def _ask(self) -> None:
        chat = self._chat
        drawn = chat.prompt_tokens * math.exp(self._random.gauss(0.0, chat.spread))
        self._prompt_left = min(max(1, round(drawn)), chat.most_tokens)
        self._answer_tokens = 1 + int(self._random.expovariate(1 / chat.answer_tokens))
        if self._clock.counts:
            self._waits.prompt_tokens += self._prompt_left
        self._asked += 1
        self._session = f"{self._peer}-{self._asked}".encode()
        self._position = self._under_way = self._said = 0
        self._began = self._clock.now
        self._send_prompt()

    def _send_prompt(self) -> None:
        while self._prompt_left and self._under_way < IN_FLIGHT:
            tokens = min(self._prompt_left, STEP_TOKENS)
            self._prompt_left -= tokens
            self._send(tokens)

    def _send(self, tokens: int) -> None:
        self._under_way += 1
        segments = segments_of((tokens,), self._policy.segment_tokens)
        self._policy.add(
            Pending(self._session, self._peer, self._position, segments, Priority.OTHERS, self._clock.now, self)
        )
        self._position += tokens


class Clock:
    """Runs what is due, in order of time."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self._seconds = seconds
        self._due: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._numbers = count()

    @property
    def counts(self) -> bool:
        """Whether the warm-up is over."""
        return self.now >= WARM_UP_SHARE * self._seconds

    def after(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._numbers), call, args))

    def run(self, afterwards: Callable[[], None]) -> None:
        """Until the time is over; `afterwards` is called after each thing that was due."""
        while self._due and self._due[0][0] <= self._seconds:
            self.now, _, call, args = heapq.heappop(self._due)
            call(*args)
            afterwards()


class Server:
    """Runs one pass at a time, and between the blocks of a long one, if the policy says so, one for decode."""

    def __init__(self, policy: Policy, cost: Cost, clock: Clock, waits: Waits) -> None:
        self._policy = policy
        self._cost = cost
        self._clock = clock
        self._waits = waits
        self._runs = False
        self._long: list[Carried] = []
        self._blocks_left = 0
        self._block_seconds = self._since_decode = self._decode_seconds = 0.0

    def go_on(self) -> None:
        """Begin the next pass, or the next block of one, unless something runs."""
        if self._runs:
            return
        if self._long:
            due = self._since_decode >= (self._policy.interrupted or 0.0) * self._decode_seconds
            batch = self._policy.next_batch(prefill=False) if due else []
            if batch:
                self._start_decode(batch)
            else:
                self._start_block()
        elif batch := self._policy.next_batch():
            self._start(batch)

    def _start(self, batch: list[Carried]) -> None:
        short = [chunk for chunk in batch if chunk.step.tokens <= DECODE_TOKENS]
        long = batch[len(short) :]
        times = self._policy.interrupted
        if times is None or not long or self._cost.seconds(long) <= times * self._cost.seconds(short):
            self._start_decode(batch)
            return
        self._long = long
        self._blocks_left = self._cost.blocks
        self._block_seconds = self._cost.seconds(long) / self._cost.blocks
        if short:
            self._start_decode(short)
        else:
            self._start_block()

    def _start_decode(self, batch: list[Carried]) -> None:
        self._decode_seconds = self._cost.seconds(batch)
        self._since_decode = 0.0
        self._take(self._decode_seconds, self._ended, batch)

    def _start_block(self) -> None:
        self._since_decode += self._block_seconds
        self._take(self._block_seconds, self._block_ended)

    def _take(self, seconds: float, ended: Callable[..., None], *args: object) -> None:
        self._runs = True
        if self._clock.counts:
            self._waits.busy_seconds += seconds
        self._clock.after(seconds, ended, *args)

    def _block_ended(self) -> None:
        self._runs = False
        self._waits.prefilled = self._clock.now
        self._blocks_left -= 1
        if not self._blocks_left:
            batch, self._long = self._long, []
            self._ended(batch)

    def _ended(self, batch: Sequence[Carried]) -> None:
        self._runs = False
        if any(chunk.step.tokens > DECODE_TOKENS for chunk in batch):
            self._waits.prefilled = self._clock.now
        for chunk in batch:
            self._policy.done(chunk.step.session)
            if chunk.last:
                chunk.step.work.result(chunk.step)


Waiting = Pending[Client]
Carried = Chunk[Client]


def simulate(policy: Policy, cost: Cost, chats: Sequence[Chat], *, seconds: float, seed: int) -> Waits:
    """What clients see of a server for so long. The same clients draw the same chances under every policy."""
    waits = Waits()
    clock = Clock(seconds)
    for number, chat in enumerate(chats):
        Client(f"client{number}", chat, clock, policy, waits, seed=seed)
    clock.run(Server(policy, cost, clock, waits).go_on)
    return waits
