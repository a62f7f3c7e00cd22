"""Passes of training on a server's span: lets them in by the memory they take, runs them when nothing else does.

What goes on next and when is decided in `training_line.py`; `training_work.py` computes. Knows no stream.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from functools import partial

import outcome
import trio

from swarmnode.errors import MachineFault, PeerRefused, SwarmnodeError
from swarmnode.models.span import Span
from swarmnode.models.training import Training, open_training
from swarmnode.models.training_cost import TrainingCost, cost_of
from swarmnode.node.defaults import STEP_BODY_BYTES, TRAINING_GROUP_TOKENS, TRAINING_GROUPS, TRAINING_ROW_TOKENS
from swarmnode.node.machine import read_memory
from swarmnode.node.sizes import shown_size
from swarmnode.node.torch_thread import TorchThread
from swarmnode.protocols.limits import MAX_ROWS
from swarmnode.protocols.messages import Train
from swarmnode.protocols.tensors import DTYPE_BYTES

from .busy import Busy
from .training_line import TrainingLine
from .training_work import Answers, Group, Pass, stretch

__all__ = ["Trainer"]

_log = logging.getLogger("swarmnode.trainer")


class Trainer:
    """The training that a server does beside its sessions.

    Args:
        busy: whether sessions have the torch thread. Tell `batch_over` whenever it may have changed.
        memory_bytes: the most that all passes together may take.
    """

    def __init__(self, span: Span, torch_thread: TorchThread, *, busy: Callable[[], bool], memory_bytes: int) -> None:
        self._span = span
        self._torch_thread = torch_thread
        self._busy = busy
        self._memory_bytes = memory_bytes
        self._line: TrainingLine[Group] = TrainingLine()
        self._whole: tuple[Training, TrainingCost] | None = None
        self._why_not = ""
        self._learning = trio.Lock()
        self._running: Group | None = None
        self._ended: set[Pass] = set()
        self._quiet = trio.Event()

    @property
    def memory_bytes(self) -> int:
        """What has been kept free for the passes that there are."""
        return self._line.bytes

    async def run(self) -> None:
        """For ever: go on when sessions have been quiet for a moment."""
        while True:
            await self._quiet.wait()
            await trio.sleep(self._line.quiet_in(trio.current_time()))
            self._quiet = trio.Event()
            self._go_on()

    async def admit(self, asked: Train, peer: str) -> Pass | Busy:
        """Take a new pass through blocks inside the span, or say why not now.

        Raises:
            PeerRefused: it can never be taken.
        """
        row_bytes = asked.tokens * self._span.hidden_size * DTYPE_BYTES[asked.dtype]
        if asked.tokens > TRAINING_ROW_TOKENS or row_bytes > STEP_BODY_BYTES:
            most = min(TRAINING_ROW_TOKENS, STEP_BODY_BYTES * asked.tokens // row_bytes)
            raise PeerRefused(
                f"A row has {asked.tokens} tokens; {most} are the most that this server trains on in {asked.dtype}.",
                hint="Send shorter rows.",
            )
        whole, cost = await self._known()
        training = await self._torch_thread.run(whole.part, asked.start, asked.end)
        rows = min(asked.rows, MAX_ROWS, STEP_BODY_BYTES // row_bytes, max(1, TRAINING_GROUP_TOKENS // asked.tokens))
        blocks = asked.end - asked.start
        bodies = TRAINING_GROUPS * (3 if asked.backward else 2) * rows * row_bytes
        needed = bodies + cost.group_bytes(blocks, rows, asked.tokens) + cost.prompts_bytes(blocks, asked.prompt_tokens)
        if needed > self._memory_bytes:
            raise PeerRefused(
                f"Rows of {asked.tokens} tokens take {shown_size(needed)} to train on here, and this server has "
                f"{shown_size(self._memory_bytes)} for that.",
                hint="Send shorter rows, or ask for fewer blocks at a time.",
            )
        entered = Pass(asked, training, rows)
        memory = read_memory(self._span.device)
        room = self._memory_bytes if memory is None else min(self._memory_bytes, memory.free)
        return self._line.admit(entered, peer, needed, room, trio.current_time()) or entered

    def submit(self, group: Group) -> None:
        """Have a group run, behind the others of its pass. `group.done` may be given what `Training` raises."""
        rows, tokens, _ = group.rows[0].shape
        self._line.add(group.owner, group, rows * tokens)
        self._go_on()

    def release(self, entered: Pass) -> None:
        """Forget a pass and free what it holds, at the latest when the stretch that runs is through."""
        if self._running is not None and self._running.owner is entered:
            self._ended.add(entered)
        else:
            self._line.release(entered, trio.current_time())
            self._go_on()

    def batch_over(self) -> None:
        """A batch of sessions' steps is through."""
        self._line.batch_over(trio.current_time())
        self._go_on()

    def _go_on(self) -> None:
        if self._running is not None or not self._line.waiting:
            return
        busy = self._busy()
        group = self._line.next(busy=busy, now=trio.current_time())
        if group is not None:
            self._running = group
            self._torch_thread.start(partial(stretch, group), partial(self._ran, group))
        elif not busy:
            self._quiet.set()

    def _ran(self, group: Group, ran: outcome.Outcome[Answers | SwarmnodeError | None]) -> None:
        self._running = None
        result = _result(ran)
        if group.owner in self._ended:
            self._ended.discard(group.owner)
            self._line.release(group.owner, trio.current_time())
            result = None
        elif result is not None:
            self._line.through(group)
        self._go_on()
        if result is not None:
            group.done(result)

    async def _known(self) -> tuple[Training, TrainingCost]:
        """The whole span, ready to be trained through, and what that takes; learnt when it is first asked for.

        Raises `PeerRefused` when no gradients can be had: the family has them, but perhaps not with weights kept so.
        """
        async with self._learning:
            if self._whole is None and not self._why_not:
                try:
                    self._whole = await self._learn()
                except RuntimeError as error:
                    _log.warning("these blocks cannot be trained through", exc_info=error)
                    self._why_not = str(error).strip().partition("\n")[0].rstrip(".")
        if self._whole is None:
            raise PeerRefused(f"No gradients go through blocks as this server holds them: {self._why_not}.")
        return self._whole

    async def _learn(self) -> tuple[Training, TrainingCost]:
        training = await self._torch_thread.run(open_training, self._span)
        learning = cost_of(training)
        while (cost := await self._torch_thread.run(_next_of, learning)) is None:
            pass
        return training, cost


def _next_of(learning: Generator[None, None, TrainingCost]) -> TrainingCost | None:
    try:
        next(learning)
    except StopIteration as done:
        cost: TrainingCost = done.value
        return cost
    return None


def _result(ran: outcome.Outcome[Answers | SwarmnodeError | None]) -> Answers | SwarmnodeError | None:
    if isinstance(ran, outcome.Value):
        return ran.value
    _log.error("a pass of training failed", exc_info=ran.error)
    return MachineFault("The server failed while computing.", hint="Try another server.")
