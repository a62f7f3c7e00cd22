"""One session with the swarm: what it holds so far, more tokens in, hidden states out; sent again where it must be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import torch
import trio
from typing_extensions import Buffer

from swarmnode.errors import BadInput, PeerBusy, PromptTooLong, ReplayNeeded
from swarmnode.models.settings import Sampling
from swarmnode.node.defaults import (
    MAX_REPLAY_TRIES,
    MAX_RETRY_AFTER_SECONDS,
    MIN_RETRY_AFTER_SECONDS,
    SESSION_PROMISE_TOKENS,
)
from swarmnode.node.routes import Route
from swarmnode.protocols.limits import MAX_CONTEXT_TOKENS, MAX_SEGMENTS
from swarmnode.protocols.messages import TensorHeader

from .asker import Asker
from .kept import Kept
from .replay import cut, forget, packed
from .ring import Answer, Ring

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .generation import Generation

__all__ = ["Session", "open_session", "public_tokens_of"]

Encoded = tuple[TensorHeader, Buffer]


class Session:
    """A run of tokens whose KV cache the servers hold; it goes on where it stands, turn after turn.

    Made by `Model.session`. One call at a time. A cancelled call leaves the session usable: what it was about to add is
    forgotten.

    Args:
        tokens: how many the servers were asked to have room for.
        public_tokens: how many of the first are no secret.

    Attributes:
        messages: the talk so far, when turns are given one by one (`generate(text, chat=True)`).
        unfed: ids that a generation chose last and that were not sent; they go before whatever is sent next.
        replays: how often all of it was sent again, because servers had given its cache to others.
    """

    def __init__(self, asker: Asker, ring: Ring, tokens: int, public_tokens: int) -> None:
        self._asker = asker
        self._ring = ring
        self._tokens = tokens
        self._public_tokens = public_tokens
        self.messages: list[Mapping[str, str]] = []
        self.unfed: list[int] = []
        self.replays = 0
        self._kept = Kept()
        self._segments: list[int] = []  # lengths of the steps in which they went
        self._position = 0
        # More than `position` after a cancelled call: servers may hold tokens that we have given up.
        self._furthest = 0
        self._busy = False
        self._gone = False

    @property
    def route(self) -> Route:
        """The servers it runs on, and the adapter."""
        return self._ring.route

    def encode(self, hidden: torch.Tensor) -> Encoded:
        """Hidden states as they would be sent now, for `extend`. On the torch thread."""
        return self._ring.encode(hidden)

    @property
    def position(self) -> int:
        """How many tokens the session holds."""
        return self._position

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids it holds; those that went in as hidden states have none."""
        return self._kept.ids

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[Mapping[str, str]],
        *,
        chat: bool = False,
        sampling: Sampling | None = None,
        **fields: object,
    ) -> Generation:
        """Text that goes on from what the session holds and `prompt`.

        Args:
            prompt: text or token ids are put behind what the session holds; a list of `{"role", "content"}` messages is
                the whole conversation, of which the part that the session holds already is not computed again.
            chat: a text is one message of a user, in the model's chat template.
            sampling: or its fields by name, such as `temperature=0.7`.

        Raises:
            BadInput: when first awaited, for a prompt or settings that make no sense.
        """
        from .generation import Generation

        return Generation(self._asker, prompt, chat=chat, sampling=sampling, fields=fields, session=self)

    async def step(self, hidden: torch.Tensor, *, position: int | None = None, keep: int | None = None) -> torch.Tensor:
        """Run raw hidden states through all blocks.

        Args:
            hidden: `[1, tokens, hidden_size]`, what block 0 is to see; any float dtype.
            position: of the first token; behind the session's own it truncates. None: at the end.
            keep: how many of the last tokens to return; None: all.

        Returns:
            `[1, keep, hidden_size]`, the last block's output, on the CPU.

        Raises:
            BadInput: the shape, position or keep make no sense.
            PromptTooLong: the session would outgrow the model's context.
            SwarmnodeError: as for any use of the swarm.
        """
        width = self._asker.ends.hidden_size
        if hidden.ndim != 3 or hidden.shape[0] != 1 or hidden.shape[1] < 1 or hidden.shape[2] != width:
            raise BadInput(
                f"Hidden states of shape {list(hidden.shape)} do not fit this model.",
                hint=f"Give [1, tokens, {width}].",
            )
        tokens = hidden.shape[1]
        if keep is not None and not 0 <= keep <= tokens:
            raise BadInput(f"keep is {keep}, but the step has {tokens} tokens.", hint=f"Give 0 to {tokens}.")
        with self.in_use():
            start = self._position if position is None else position
            self.truncate(start)
            kept = tokens if keep is None else keep
            answers = await self.extend(hidden.detach().clone(), keep=kept)
            if not answers:
                return torch.empty(1, 0, width)
            return await self._asker.torch_thread.run(_join, answers)

    def truncate(self, position: int) -> None:
        """Forget everything from `position` on. Servers do so at the next step. Raises `BadInput`."""
        if not 0 <= position <= self._position:
            raise BadInput(
                f"Position {position} is not within the session, which holds {self._position} tokens.",
                hint=f"Give 0 to {self._position}.",
            )
        self._kept.truncate(position)
        forget(self._segments, position)
        self._position = position
        self.unfed = []

    def resume(self, ids: Sequence[int]) -> int:
        """Truncate to the beginning that the session shares with `ids`, all but the last of them; its length."""
        held = self._kept.ids if self._kept.all_ids else ()
        shared = 0
        for ours, wanted in zip(held, ids[:-1], strict=False):
            if ours != wanted:
                break
            shared += 1
        self.truncate(min(shared, self._position))
        return self._position

    async def extend(
        self, added: Sequence[int] | torch.Tensor, *, keep: int, encoded: Encoded | None = None
    ) -> list[Answer]:
        """Put tokens behind those held: ids, or hidden states `[1, tokens, hidden_size]`.

        Args:
            keep: how many of the last tokens' outputs to bring back.
            encoded: the hidden states of `added`, when they are at hand.

        Returns:
            The answers that hold the kept outputs, in order; none when `keep` is 0.
        """
        start = self._position
        if isinstance(added, torch.Tensor):
            self._kept.add_hidden(added)
        else:
            self._kept.add_ids(added)
        end = len(self._kept)
        try:
            if end > self._asker.context_tokens:
                raise PromptTooLong(
                    f"The session would hold {end} tokens, but {self._asker.id.name} takes "
                    f"{self._asker.context_tokens}.",
                    hint="Shorten the text, or begin a new session.",
                )
            answers = await self._send_or_replay(start, end, keep, encoded)
        except BaseException:
            self._kept.truncate(start)
            raise
        self._position = end
        self.unfed = []
        return answers

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the session for one call. Raises `BadInput` when another has it."""
        if self._busy:
            raise BadInput(
                "The session is in use.", hint="Finish or close the other generation, or open a session more."
            )
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def close_soon(self) -> None:
        """Let go of all servers, without waiting until it is done."""
        self._ring.close()

    async def aclose(self) -> None:
        """Let go of all servers. Safe to call twice."""
        self._ring.close()
        with trio.CancelScope(shield=True):
            await self._ring.closed()

    async def _send_or_replay(self, start: int, end: int, keep: int, encoded: Encoded | None) -> list[Answer]:
        steps = cut(end - start, self._ring.max_step_tokens)
        for tries_left in reversed(range(MAX_REPLAY_TRIES)):
            try:
                if self._gone:
                    return await self._replay_elsewhere(end, keep)
                if start < self._furthest and not self._asker.truncatable:
                    return await self._replay(end, keep)
                answers = await self._send(start, [[step] for step in steps], keep, encoded)
            except (ReplayNeeded, PeerBusy) as why:
                # A server's state cannot go back, or was given to others. We have all that went in.
                self._gone = True
                await self.aclose()
                if not tries_left:
                    raise
                if isinstance(why, PeerBusy):
                    await trio.sleep(min(why.retry_after_seconds or MIN_RETRY_AFTER_SECONDS, MAX_RETRY_AFTER_SECONDS))
            else:
                self._segments += steps
                return answers
        raise AssertionError("the last try returns or raises")

    async def _replay_elsewhere(self, end: int, keep: int) -> list[Answer]:
        """Replay in a ring of its own. The session is `_gone` until all is through: a replay may be cancelled, too."""
        await self.aclose()
        tokens = max(end, self._tokens)
        self._ring = await self._asker.open_ring(tokens, self._public_tokens, self.route.adapter)
        self._furthest = 0
        answers = await self._replay(end, keep)
        self._gone = False
        self.replays += 1
        return answers

    async def _replay(self, end: int, keep: int) -> list[Answer]:
        """Send all that is kept from position 0, in the steps in which it went, packed into few messages."""
        most = self._ring.max_step_tokens
        added = cut(end - sum(self._segments), most)
        messages = packed([*self._segments, *added], most, MAX_SEGMENTS)
        answers = await self._send(0, messages, keep, None)
        self._segments = [step for message in messages for step in message]
        return answers

    async def _send(
        self, start: int, messages: Sequence[Sequence[int]], keep: int, encoded: Encoded | None
    ) -> list[Answer]:
        """Send kept tokens from `start` on in messages that follow each other round the ring.

        Args:
            messages: the lengths of the steps that each of them carries.
        """
        ring = self._ring
        end = start + sum(map(sum, messages))
        self._furthest = max(end, self._furthest if start else 0)
        under_way = []
        stop = start
        for steps in messages:
            begin, stop = stop, stop + sum(steps)
            if encoded is None or stop - begin < end - start:
                encoded = await self._asker.torch_thread.run(self._encode, begin, stop, urgent=True)
            tensor, body = encoded
            kept = min(max(0, stop - (end - keep)), stop - begin)
            segments = tuple(steps) if len(steps) > 1 else ()
            step = await ring.submit(tensor, body, position=begin, keep=kept, segments=segments)
            under_way.append((step, kept))
        answers = [(await ring.answer(step), kept) for step, kept in under_way]
        return [answer for answer, kept in answers if kept]

    def _encode(self, start: int, end: int) -> Encoded:
        return self._ring.encode(self._kept.embed(self._asker.ends, start, end))


def public_tokens_of(public_prefix: int) -> int:
    """How many tokens to call public on the wire. Raises `BadInput` for a number below 0."""
    if public_prefix < 0:
        raise BadInput(f"A public prefix of {public_prefix} tokens makes no sense.", hint="Give 0 or more.")
    return min(public_prefix, MAX_CONTEXT_TOKENS)


def _join(answers: list[Answer]) -> torch.Tensor:
    return torch.cat([answer.hidden() for answer in answers], dim=1)


@asynccontextmanager
async def open_session(
    asker: Asker, max_tokens: int | None, public_prefix: int, adapter: str | None = None
) -> AsyncIterator[Session]:
    """A session for as long as the block runs.

    Args:
        adapter: as for `Servers.plan`.
        max_tokens: how many tokens the servers are asked to promise room for; the session may outgrow it while they
            have room. None is a moderate start.
        public_prefix: how many of its first tokens are no secret.

    Raises:
        BadInput: for one that makes no sense; others as `Asker.open_ring`.
    """
    tokens = min(max_tokens or SESSION_PROMISE_TOKENS, asker.context_tokens)
    public_tokens = public_tokens_of(public_prefix)
    session = Session(asker, await asker.open_ring(tokens, public_tokens, adapter), tokens, public_tokens)
    try:
        yield session
    finally:
        await session.aclose()
