"""Answers the training protocol: one pass on each stream, its messages in order, its answers one after the other.

Knows no torch.
"""

from __future__ import annotations

import logging
from contextlib import suppress

import trio
from typing_extensions import Buffer

from swarmnode.errors import (
    BadRange,
    ModelMismatch,
    PeerBusy,
    PeerLost,
    PeerRefused,
    ProtocolViolation,
    SwarmnodeError,
)
from swarmnode.node.background import race
from swarmnode.node.defaults import (
    CLIENT_SILENT_PINGS,
    CLOSE_SECONDS,
    FIRST_FRAME_SECONDS,
    PING_SECONDS,
    TRAINING_GROUPS,
    TRAINING_IDLE_SECONDS,
)
from swarmnode.node.net.network import Stream
from swarmnode.node.streams import MessageStream, Silence
from swarmnode.protocols.messages import (
    Break,
    Gradients,
    Ping,
    Pong,
    Prompts,
    Ready,
    Refused,
    Rows,
    TensorHeader,
    Train,
)
from swarmnode.protocols.records import ModelId
from swarmnode.protocols.tensors import DTYPE_BYTES, KNOWN_CODECS

from .busy import Busy
from .trainer import Trainer
from .training_work import Answers, Coded, Group, Pass

__all__ = ["TrainingHandler"]

MAX_PONGS = 8
"""Answers to pings that may wait for the answers to groups before them."""

_log = logging.getLogger("swarmnode.server")


class TrainingHandler:
    """All passes of one server.

    Args:
        start, end, hidden_size: of the blocks held.
    """

    def __init__(self, model: ModelId, trainer: Trainer, *, start: int, end: int, hidden_size: int) -> None:
        self._model = model
        self._trainer = trainer
        self._start = start
        self._end = end
        self._hidden_size = hidden_size
        self._scopes: set[trio.CancelScope] = set()

    @property
    def passes(self) -> int:
        """How many streams are being answered."""
        return len(self._scopes)

    async def __call__(self, stream: Stream) -> None:
        """Answer one stream of the training protocol."""
        messages = MessageStream(stream)
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                await self._answer(messages)
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            await self._say(messages, PeerLost("This server is leaving.", hint="Try another server."))

    def leave(self) -> None:
        """Give up all passes, telling their clients."""
        for scope in self._scopes:
            scope.cancel()

    async def _answer(self, messages: MessageStream) -> None:
        with trio.move_on_after(FIRST_FRAME_SECONDS) as waiting:
            received = await messages.receive()
        if waiting.cancelled_caught:
            raise PeerLost(f"Peer {messages.peer} opened a stream and said nothing.", peer=messages.peer)
        if received is None:
            return
        asked, _ = received
        if not isinstance(asked, Train):
            raise ProtocolViolation(f"Peer {messages.peer} began with {asked.type}.", peer=messages.peer)
        try:
            self._check(asked)
            entered = await self._trainer.admit(asked, messages.peer)
        except SwarmnodeError as error:
            await self._refuse(messages, error, None)
            return
        if isinstance(entered, Busy):
            hint = "Try again later, or another server."
            await self._refuse(messages, PeerBusy(entered.reason, hint=hint), entered.retry_after_seconds)
            return
        try:
            await _ServerPass(entered, messages, self._trainer, self._hidden_size).run()
        except SwarmnodeError as error:
            # Not raised again: that would drop the stream, and with it what is said here.
            _log.info("a pass of %s ended: %s", messages.peer, error.message)
            await self._say(messages, error)
        finally:
            self._trainer.release(entered)

    def _check(self, asked: Train) -> None:
        """Raise the reason why this pass can never be run."""
        span = (asked.start, asked.end)
        if asked.model != self._model:
            raise ModelMismatch(
                f"This server holds {self._model.name} with other weights than those asked for."
                if asked.model.name == self._model.name
                else f"This server holds {self._model.name}, not {asked.model.name}.",
                hint="Use the same revision on both sides.",
            )
        if not self._start <= asked.start < asked.end <= self._end:
            raise BadRange(
                f"This server holds blocks {self._start}:{self._end}, not {asked.start}:{asked.end}.", span=span
            )
        if asked.dtype not in DTYPE_BYTES:
            raise PeerRefused(f"Tensors cannot be sent here as {asked.dtype}.", hint="Use float32.")
        if unknown := set(asked.codecs).difference(KNOWN_CODECS):
            raise PeerRefused(f"Codec {min(unknown)} is not read here.", hint="Leave it out.")

    async def _refuse(self, messages: MessageStream, error: SwarmnodeError, later: float | None) -> None:
        _log.info("a pass of %s is refused: %s", messages.peer, error.message)
        await messages.send(Refused(error.code, error.message, error.hint, later))

    async def _say(self, messages: MessageStream, why: SwarmnodeError) -> None:
        """Tell the client, if that is quick and it still listens."""
        with trio.move_on_after(CLOSE_SECONDS) as scope, suppress(PeerLost):
            scope.shield = True
            if not messages.broken:
                await messages.send(Break(why.code, why.message, why.hint))


class _ServerPass:
    """One pass: what is to come next, what is under way."""

    def __init__(self, entered: Pass, messages: MessageStream, trainer: Trainer, hidden_size: int) -> None:
        self._pass = entered
        self._asked = entered.asked
        self._messages = messages
        self._trainer = trainer
        self._width = hidden_size
        self._next_block = self._asked.start if self._asked.prompt_tokens else self._asked.end
        self._next_row = 0
        self._rows: Coded | None = None
        self._under_way = 0
        self._heard_at = trio.current_time()
        most = TRAINING_GROUPS + MAX_PONGS
        self._answer, self._answers = trio.open_memory_channel[Answers | SwarmnodeError](most)

    async def run(self) -> None:
        """Serve until the last answer is out. Raises why it ended before."""
        await self._messages.send(Ready(self._pass.group_rows, TRAINING_GROUPS))
        await race(self._read, self._write, self._watch)

    async def _read(self) -> None:
        while True:
            message, body = await self._messages.expect()
            if not isinstance(message, Ping):
                self._heard_at = trio.current_time()
            match message:
                case Ping(nonce):
                    with suppress(trio.WouldBlock):
                        if self._answers.statistics().current_buffer_used < MAX_PONGS:
                            self._answer.send_nowait([(Pong(nonce), b"")])
                case Prompts() if self._next_block < self._asked.end:
                    self._take_prompts(message, body)
                case Rows() if self._takes_rows:
                    self._take_rows(message, body)
                case Gradients() if self._rows is not None:
                    self._take_gradients(message, body)
                case Break(_, why):
                    raise PeerLost(f"Peer {self._messages.peer} gave up: {why}", peer=self._messages.peer)
                case _:
                    raise self._violation(f"sent {message.type} where something else had to come")

    @property
    def _takes_rows(self) -> bool:
        return self._next_block == self._asked.end and self._rows is None and self._next_row < self._asked.rows

    def _take_prompts(self, prompts: Prompts, body: Buffer) -> None:
        blocks = prompts.tensor.shape[0]
        self._check_tensor(prompts.tensor, blocks, self._asked.prompt_tokens)
        if prompts.block != self._next_block or prompts.block + blocks > self._asked.end:
            raise self._violation(f"sent prompts of blocks from {prompts.block} on, not from {self._next_block}")
        self._pass.coded_prompts.append((prompts.tensor, body))
        self._next_block += blocks

    def _take_rows(self, rows: Rows, body: Buffer) -> None:
        if self._under_way >= TRAINING_GROUPS:
            raise self._violation(f"has more than {TRAINING_GROUPS} groups under way")
        if rows.row != self._next_row:
            raise self._violation(f"sent rows from {rows.row} on, not from {self._next_row}")
        self._check_tensor(rows.tensor, self._group_rows, self._asked.tokens)
        if self._asked.backward:
            self._rows = rows.tensor, body
        else:
            self._submit((rows.tensor, body), None)

    def _take_gradients(self, gradients: Gradients, body: Buffer) -> None:
        assert self._rows is not None
        if gradients.row != self._next_row:
            raise self._violation(f"sent gradients from {gradients.row} on, not from {self._next_row}")
        self._check_tensor(gradients.tensor, self._group_rows, self._asked.tokens)
        rows, self._rows = self._rows, None
        self._submit(rows, (gradients.tensor, body))

    def _submit(self, rows: Coded, gradients: Coded | None) -> None:
        row = self._next_row
        self._next_row += rows[0].shape[0]
        self._under_way += 1
        self._trainer.submit(Group(self._pass, row, rows, gradients, self._answer.send_nowait))

    @property
    def _group_rows(self) -> int:
        """Of the group that comes next."""
        return min(self._pass.group_rows, self._asked.rows - self._next_row)

    def _check_tensor(self, tensor: TensorHeader, rows: int, tokens: int) -> None:
        if tensor.shape != (rows, tokens, self._width):
            raise self._violation(f"sent shape {list(tensor.shape)}, not {[rows, tokens, self._width]}")
        if tensor.dtype != self._asked.dtype:
            raise self._violation(f"sent {tensor.dtype}; {self._asked.dtype} was agreed")
        if tensor.codec not in self._asked.codecs:
            raise self._violation(f"sent codec {tensor.codec}, which was not agreed on")

    async def _write(self) -> None:
        """Send the answers as they come; ends with the last one."""
        async for answers in self._answers:
            if isinstance(answers, SwarmnodeError):
                raise answers
            for message, body in answers:
                await self._messages.send(message, body)
            if not isinstance(answers[0][0], Pong):
                self._under_way -= 1
                self._heard_at = trio.current_time()
                if not self._under_way and self._next_row == self._asked.rows:
                    return

    async def _watch(self) -> None:
        silence = Silence(self._messages, CLIENT_SILENT_PINGS)
        while True:
            await trio.sleep(PING_SECONDS)
            idle = not self._under_way and trio.current_time() - self._heard_at > TRAINING_IDLE_SECONDS
            if idle or silence.check():
                raise PeerLost(f"Peer {self._messages.peer} fell silent.", peer=self._messages.peer)

    def _violation(self, what: str) -> ProtocolViolation:
        return ProtocolViolation(f"Peer {self._messages.peer} {what}.", peer=self._messages.peer)
