"""The span of a server and all that wants to use it: takes steps, runs them in batches, keeps caches within bounds.

What to run next and when, and who may hold how much, is decided in `schedule.py`, `gathering.py` and
`cache_budget.py`; `batch.py` computes. One batch is under way at a time; but one that carries much prefill stops
between blocks for batches of decode, which are done with before it is (`pauses.py`). Knows no stream.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

import outcome
import trio
from typing_extensions import Buffer

from swarmnode.errors import MachineFault, ReplayNeeded, SwarmnodeError
from swarmnode.models.span import Span
from swarmnode.node.background import race
from swarmnode.node.defaults import (
    LOOK_AGAIN_SECONDS,
    MAX_STEP_WAIT_SECONDS,
    PREFILL_CHUNK_TOKENS,
    PREFIX_BLOCK_TOKENS,
    STEP_BODY_BYTES,
)
from swarmnode.node.torch_thread import TorchThread
from swarmnode.protocols.messages import Step, TensorHeader

from .batch import Computed, Held, Job, run_batch
from .busy import Busy, as_error, busy_for
from .cache_budget import CacheBudget, CacheStatistics
from .gathering import Gathering
from .giving_way import GivingWay
from .measuring import Costs, learn_costs, measure_rates
from .pauses import parted
from .prefix import LEAST_BLOCK_TOKENS, Chain, PrefixStatistics
from .prefix_rows import Prefixes
from .rates import Rates
from .schedule import Activity, Chunk, Pending, Schedule, segments_of
from .use import Use

__all__ = ["Computed", "Engine"]

WIDEST_ELEMENT_BYTES = 4

_log = logging.getLogger("swarmnode.engine")


@dataclass(slots=True, eq=False)
class _Session:
    use: Use
    held: Held
    closing: bool = False


class Engine:
    """The span of this server, and the thread that may touch it.

    Args:
        cache_tokens: how many tokens all sessions together may hold, counted as the whole span allocates them.
        deterministic: whether a session that is alone computes as it would among others, to the last bit.
        segment_tokens: longest run of tokens that attention takes at once; None: as the client cut them, but for blocks
            that may be shared.
        prefix_cache: whether sessions of one peer that begin alike share the work on their beginnings.
        share_prefixes: whether sessions of all peers do, as far as their clients call them public.

    Attributes:
        rates: learnt from every batch.
        batch_over: called when a batch is through and the next, if any waits, has begun.
    """

    def __init__(
        self,
        span: Span,
        torch_thread: TorchThread,
        *,
        cache_tokens: int,
        deterministic: bool = False,
        segment_tokens: int | None = None,
        prefix_cache: bool = True,
        share_prefixes: bool = False,
    ) -> None:
        self.rates = Rates()
        self.batch_over: Callable[[], object] = _nobody
        self._span = span
        self._torch_thread = torch_thread
        self._deterministic = deterministic
        self._segment_tokens = segment_tokens
        self._schedule: Schedule[Job] = Schedule()
        self._budget = CacheBudget(cache_tokens, self._schedule.activity)
        self._prefixes = Prefixes(segment_tokens or PREFIX_BLOCK_TOKENS, self._unused_bytes)
        self._prefix_cache = prefix_cache and self._prefixes.block_tokens >= LEAST_BLOCK_TOKENS
        self._share_prefixes = share_prefixes
        self._sessions: dict[bytes, _Session] = {}
        self._parts: WeakValueDictionary[tuple[int, int], Span] = WeakValueDictionary()
        self._parts[span.start, span.end] = span
        self._batch: list[Chunk[Job]] = []
        self._interrupted: list[Chunk[Job]] = []  # prefill, which stops for the other
        self._between = GivingWay(torch_thread, span.device)
        self._to_end: list[tuple[bytes, SwarmnodeError]] = []
        self._waiting = trio.Event()
        self._gathering = Gathering()
        self._gathers: trio.Event | None = None  # without `run` nobody would end it
        self._costs = Costs(span)

    @property
    def start(self) -> int:
        return self._span.start

    @property
    def end(self) -> int:
        return self._span.end

    @property
    def num_blocks(self) -> int:
        return self._span.num_blocks

    @property
    def hidden_size(self) -> int:
        return self._span.hidden_size

    @property
    def busy(self) -> bool:
        """Whether a batch is under way, or about to be."""
        about_to_be = self._schedule.waiting_steps and self._gathering.is_on(trio.current_time())
        return bool(self._batch or self._interrupted or about_to_be)

    @property
    def max_step_tokens(self) -> int:
        """Most tokens of one step, so that its body stays within bounds in any dtype; whole blocks, if there is one."""
        most = max(1, min(PREFILL_CHUNK_TOKENS, STEP_BODY_BYTES // (self.hidden_size * WIDEST_ELEMENT_BYTES)))
        return most - most % self._prefixes.block_tokens or most

    @property
    def cache_tokens_left(self) -> int:
        """What a new session could hold at once."""
        return self._budget.left(trio.current_time())

    @property
    def cache_bytes(self) -> int:
        """What all caches may have allocated together; 0 where states do not grow, or before `measure`."""
        return self._budget.budget * self._costs.token_bytes

    @property
    def waiting_steps(self) -> int:
        """Steps that no batch has wholly carried yet."""
        return self._schedule.waiting_steps

    def statistics(self) -> CacheStatistics:
        """Who holds what, and what has become of sessions."""
        return self._budget.statistics()

    def prefix_statistics(self) -> PrefixStatistics:
        """What is kept of how sessions began, and how much work that has saved."""
        return self._prefixes.statistics()

    async def measure(self, known: Rates | None = None) -> None:
        """Learn what caches cost, and by a few steps of noise how quick this server is, unless that is known."""
        self._costs = await self._torch_thread.run(learn_costs, self._span)
        self.rates = await measure_rates(self._span, self._torch_thread) if known is None else known
        if self.rates.decode_tokens_per_second:
            self._gathering.pace.observe(1, 1 / self.rates.decode_tokens_per_second)

    async def run(self) -> None:
        """For ever: look again at steps that wait, for room or for their turn, and give up those that wait too long."""
        await race(self._look_again, self._stop_gathering)

    async def _stop_gathering(self) -> None:
        while True:
            self._gathers = trio.Event()
            await self._gathers.wait()
            await trio.sleep_until(self._gathering.until or trio.current_time())
            self._next()

    async def _look_again(self) -> None:
        while True:
            await self._waiting.wait()
            await trio.sleep(LOOK_AGAIN_SECONDS)
            self._waiting = trio.Event()
            for session in self._schedule.expired(trio.current_time(), MAX_STEP_WAIT_SECONDS):
                waited = f"A step waited for {MAX_STEP_WAIT_SECONDS:.0f} seconds, because this server is overloaded."
                self._end(session, as_error(busy_for(waited, self._schedule.drain_seconds())))
            self._next()

    def knows(self, session: bytes) -> bool:
        """Whether this session is open."""
        return self._budget.knows(session)

    async def open(self, use: Use) -> Busy | None:
        """Take a new session on blocks inside the span, with an empty cache; or say why not now."""
        cost = partial(self._costs.tokens, (use.end - use.start) / (self.end - self.start))
        busy = self._budget.open(
            use.session,
            use.peer,
            priority=use.priority,
            wanted_tokens=use.tokens,
            cost=cost,
            now=trio.current_time(),
        )
        if busy is None:
            try:
                held = await self._torch_thread.run(self._hold, use, urgent=True)
            except BaseException:
                self._budget.release(use.session, trio.current_time())
                raise
            self._sessions[use.session] = _Session(use, held)
        return busy

    def submit(
        self,
        session: bytes,
        step: Step,
        body: Buffer,
        *,
        keep: int | None,
        dtype: str,
        codec: Callable[[TensorHeader], int],
        done: Callable[[Computed | SwarmnodeError], None],
    ) -> Busy | None:
        """Have a session's next tokens run; see `Job`. Its steps are run in the order in which they are given.

        `done` is called once, unless the session ends before. It may be given `ReplayNeeded` or `ProtocolViolation`, as
        `Span.check`, the latter also when `body` cannot be decoded; `OutOfMemory`; `MachineFault`.
        """
        each = self._sessions[session]
        job = Job(each.held, step, body, keep, dtype, codec, done)
        busy = self._schedule.add(
            Pending(
                session=session,
                peer=each.use.peer,
                position=step.position,
                segments=segments_of(step.segments or (step.tensor.tokens,), self._segment_tokens),
                priority=each.use.priority,
                arrived=trio.current_time(),
                work=job,
            )
        )
        if busy is None:
            self._gathering.came(session, trio.current_time())
            self._next()
        return busy

    def close(self, session: bytes) -> None:
        """Forget a session and free its cache, at the latest when the batch that it is in is through."""
        each = self._sessions[session]
        self._schedule.cancel(session)
        if self._schedule.activity(session) is Activity.RUNNING:
            each.closing = True
        else:
            self._release(session)
            self._next()

    def _next(self) -> None:
        """Begin the next batch, unless there is one that has to end first."""
        while not self._batch and not self._waits_for_others():
            room = partial(self._has_room, trio.current_time())
            batch = self._schedule.next_batch(room, prefill=not self._interrupted)
            ending, self._to_end = self._to_end, []
            for session, why in ending:
                self._end(session, why)
            first, behind = parted(batch, self._schedule.pace)
            if first:
                self._gathering.begun()
                self._batch = first
                self._start(first, None)
            if behind:
                self._interrupted = behind
                self._start(behind, self._between)
            if batch or not ending:  # else what they held may be enough for others
                break
        if self._schedule.waiting_steps:
            self._waiting.set()

    def _waits_for_others(self) -> bool:
        """Whether decode, which alone could run now, waits for sessions that are about to come."""
        others = self._interrupted or self._schedule.waiting_prefills or not self._schedule.waiting_steps
        if others or self._gathers is None or not self._gathering.waits(trio.current_time()):
            return False
        self._gathers.set()
        return True

    def _start(self, batch: list[Chunk[Job]], between: GivingWay | None) -> None:
        run = partial(run_batch, batch, deterministic=self._deterministic, prefixes=self._prefixes, between=between)
        self._torch_thread.start(run, partial(self._ran, batch), urgent=between is None)

    def _has_room(self, now: float, chunk: Chunk[Job]) -> bool:
        session = chunk.step.session
        reserved = self._budget.reserve(session, chunk.end, now)
        for other in reserved.evicted:
            why = "The cache of this session was given to others, because it was used least."
            self._to_end.append((other, ReplayNeeded(why, hint="Send the session again from position 0.")))
        if reserved.refused is not None:
            self._to_end.append((session, as_error(reserved.refused)))
        return reserved.granted

    def _end(self, session: bytes, why: SwarmnodeError) -> None:
        """End a session of which nothing runs: its cache is freed at once, its owner told."""
        each = self._sessions.get(session)
        self._schedule.cancel(session)
        if each is not None:
            each.held.cache = each.held.part.open_session(each.held.cache.adapter)
            each.use.ended(why)

    def _ran(self, batch: list[Chunk[Job]], ran: outcome.Outcome[list[Computed | SwarmnodeError | None]]) -> None:
        """A batch is through: have the torch thread go on if anything waits, then hand out what this one gave."""
        if batch is self._interrupted:
            self._interrupted = []
        else:
            self._batch = []
        results = _results(batch, ran)
        for chunk, result in zip(batch, results, strict=True):
            session = chunk.step.session
            if isinstance(result, SwarmnodeError):
                self._schedule.cancel(session)  # it ends with this
            self._schedule.done(session)
            if self._sessions[session].closing:
                self._release(session)
        through = {chunk.step.session for chunk in batch if chunk.last} & self._sessions.keys()
        idle = [session for session in through if self._schedule.activity(session) is Activity.IDLE]
        self._gathering.given(idle, trio.current_time())
        if self._schedule.waiting_steps:
            self._next()
        self.batch_over()
        for chunk, result in zip(batch, results, strict=True):
            if result is not None and chunk.step.session in self._sessions:
                chunk.step.work.done(result)
        self._observe(batch, results)

    def _observe(self, batch: Sequence[Chunk[Job]], results: Sequence[Computed | SwarmnodeError | None]) -> None:
        done = [(chunk, each) for chunk, each in zip(batch, results, strict=True) if isinstance(each, Computed)]
        if not done or any(computed.known_tokens for _, computed in done):
            return  # how quick it is shows only in what is computed
        seconds = max(computed.compute_us for _, computed in done) / 1e6
        tokens = sum(chunk.tokens for chunk in batch)
        self._schedule.pace.observe(tokens, seconds)
        if not any(chunk.step.is_prefill for chunk in batch):
            self._gathering.pace.observe(tokens, seconds)
        # What a session that decodes gets of it; how quick prefill is shows only where it has a batch for itself.
        shown = done if len(batch) == 1 else [each for each in done if each[0].step.tokens == 1][:1]
        for chunk, _ in shown:
            part = chunk.step.work.held.part
            self.rates.observe(chunk.step.tokens, seconds, (part.end - part.start) / (self.end - self.start))

    def _release(self, session: bytes) -> None:
        del self._sessions[session]
        self._gathering.forget(session)
        self._budget.release(session, trio.current_time())

    def _unused_bytes(self) -> int:
        """What no session holds of the budget. From any thread: a moment later it may be less, and is asked again."""
        return self._budget.free * self._costs.token_bytes

    def _hold(self, use: Use) -> Held:
        start, end = use.start, use.end
        part = self._parts.get((start, end))
        if part is None:
            part = self._parts[start, end] = self._span.part(start, end)
        adapter = use.adapter.digest.hex() if use.adapter is not None else None
        cache = part.open_session(adapter)
        if not self._prefix_cache or not part.ragged:
            return Held(part, cache)
        public_tokens = use.public_tokens if self._share_prefixes else 0
        about = (start, end, use.dtype, adapter)
        return Held(part, cache, Chain(about, use.peer, public_tokens, self._prefixes.block_tokens))


def _nobody() -> None:
    """Nobody wants to know."""


def _results(
    batch: Sequence[Chunk[Job]], ran: outcome.Outcome[list[Computed | SwarmnodeError | None]]
) -> Sequence[Computed | SwarmnodeError | None]:
    if isinstance(ran, outcome.Value):
        return ran.value
    _log.error("a batch failed", exc_info=ran.error)
    return [MachineFault("The server failed while computing.", hint="Try another server.")] * len(batch)
