"""Text from the swarm, token by token: the loop from logits to the next step. Knows no stream and no route planning."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Literal, TypeVar, cast

import torch
import trio

from swarmnode.errors import BadInput, PromptTooLong
from swarmnode.models.detokenize import Detokenizer
from swarmnode.models.sampling import Sampler
from swarmnode.models.settings import Sampling
from swarmnode.models.stopping import StopStrings
from swarmnode.node.routes import Route

from .asker import Asker
from .prompts import Prompt, is_conversation, prompt_ids
from .ring import Answer
from .session import Encoded, Session, public_tokens_of

__all__ = ["FinishReason", "Generation", "Piece", "sampling_from"]

T = TypeVar("T")

FinishReason = Literal["stop", "stop_string", "length"]


class Piece(str):
    """What one token added to the text; empty while a character or a possible stop string is incomplete.

    Attributes:
        ids: the tokens it came with.
    """

    ids: tuple[int, ...]

    def __new__(cls, text: str, ids: tuple[int, ...]) -> Piece:
        piece = super().__new__(cls, text)
        piece.ids = ids
        return piece


class Generation:
    """One answer, made as it is read: `async for piece in generation`.

    Nothing happens before it is first awaited, and nothing runs ahead of the reader. Reading to the end frees the
    servers, and so do an error and cancelling. Who breaks off in the middle and keeps the object should `aclose` it, or
    have it in an `async with`. What came before an error stays in `text` and `ids`.

    Attributes:
        prompt_ids: what was asked, once opened.
        ids: all tokens so far, the one that ended the answer among them.
        text: all text so far.
        finish_reason: "stop" for the model's own end, "stop_string", or "length"; None before the end.
        ttft_seconds: from the first await to the first token.
        tokens_per_second: of the tokens after the first, without the reader's own time.
        hop_seconds: mean time of a decode step for each hop, beyond what the servers spent computing or queueing.
        last_hop_seconds: the same of the latest decode step alone.
    """

    def __init__(
        self,
        asker: Asker,
        prompt: Prompt,
        *,
        chat: bool,
        sampling: Sampling | None,
        fields: Mapping[str, Any],
        session: Session | None = None,
        public_prefix: int = 0,
        adapter: str | None = None,
    ) -> None:
        self.prompt_ids: tuple[int, ...] = ()
        self.ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.ttft_seconds = 0.0
        self._asker = asker
        # Before anything can be refused: an object that was never whole is thrown away too.
        self._own_session: Session | None = None
        self._closed = False
        self._prompt = prompt
        self._chat = chat
        self._public_tokens = public_tokens_of(public_prefix)
        self._sampling = sampling_from(sampling, fields)
        self._session = session
        self._adapter = adapter
        self._opened = False
        self._running = False
        self._use = ExitStack()
        self._detokenizer = Detokenizer(asker.tokenizer)
        self._stops = StopStrings(self._sampling.stop)
        self._sampler: Sampler | None = None
        self._encoded: Encoded | None = None
        self._conversation: list[Mapping[str, str]] | None = None
        self._max_new_tokens = self._sampling.max_new_tokens
        self._begun_at = 0.0
        self._decode_seconds = 0.0
        self._outside_seconds = 0.0
        self._last_outside_seconds = 0.0
        self._decode_steps = 0

    @property
    def route(self) -> Route | None:
        """The servers it runs on; None until opened."""
        return self._session.route if self._session is not None else None

    @property
    def tokens_per_second(self) -> float:
        return self._decode_steps / self._decode_seconds if self._decode_seconds else 0.0

    @property
    def hop_seconds(self) -> float:
        hops = len(self.route.hops) if self.route is not None else 0
        return self._outside_seconds / (self._decode_steps * hops) if self._decode_steps and hops else 0.0

    @property
    def last_hop_seconds(self) -> float:
        hops = len(self.route.hops) if self.route is not None else 0
        return self._last_outside_seconds / hops if hops else 0.0

    async def open(self) -> Route:
        """Find the servers and open the session, before the first piece.

        Raises:
            BadInput, PromptTooLong: the prompt.
            SwarmFault, PeerFault: nobody can run it.
        """
        await self._guarded(self._open)
        assert self.route is not None
        return self.route

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Piece:
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise StopAsyncIteration
        return await self._guarded(self._next)

    async def aclose(self) -> None:
        """Free the servers. What came so far stays. Safe to call twice."""
        self._closed = True
        self._use.close()
        if self._own_session is not None:
            await self._own_session.aclose()

    def __del__(self) -> None:
        """Free the servers of an answer that was thrown away half read. May run in any thread."""
        if self._own_session is not None and not self._closed:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._own_session.close_soon)

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _guarded(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run one call at a time; whatever it raises ends the generation and frees the servers."""
        if self._running:
            raise BadInput("The generation is being read by another task.", hint="Read it from one task.")
        self._running = True
        try:
            return await call()
        except BaseException:
            self.text += self._flush()
            await self.aclose()
            raise
        finally:
            self._running = False

    async def _open(self) -> None:
        if self._opened:
            return
        self._begun_at = time.perf_counter()
        if self._session is not None:
            self._use.enter_context(self._session.in_use())
        ids, held = await self._asker.torch_thread.run(self._read_prompt)
        self.prompt_ids = tuple(ids)
        room = self._asker.context_tokens - len(ids) - held
        if room < 1:
            raise PromptTooLong(
                f"The prompt has {len(ids)} tokens{f' after {held}' if held else ''}, but "
                f"{self._asker.id.name} takes {self._asker.context_tokens}, its answer among them.",
                hint=f"Shorten it by {1 - room} tokens or more.",
            )
        self._max_new_tokens = min(self._sampling.max_new_tokens, room)
        if self._session is None:
            wanted = len(ids) + self._max_new_tokens
            self._token = trio.lowlevel.current_trio_token()
            ring = await self._asker.open_ring(wanted, self._public_tokens, self._adapter)
            self._session = self._own_session = Session(self._asker, ring, wanted, self._public_tokens)
        self._opened = True

    def _read_prompt(self) -> tuple[list[int], int]:
        """The prompt's ids, and how many tokens the session holds that stay before them. On the torch thread."""
        session, prompt = self._session, self._prompt
        if session is not None and self._chat and isinstance(prompt, str):
            # A turn of the talk that the session remembers.
            prompt = [*session.messages, {"role": "user", "content": prompt}]
        if is_conversation(prompt):
            self._conversation = list(cast("Sequence[Mapping[str, str]]", prompt))
        held = 0 if session is None or is_conversation(prompt) else session.position + len(session.unfed)
        ids = prompt_ids(
            self._asker.tokenizer,
            prompt,
            chat=self._chat,
            vocab_size=self._asker.ends.vocab_size,
            continues=held > 0,
        )
        return ids, held

    async def _next(self) -> Piece:
        begun = time.perf_counter()
        await self._open()
        assert self._session is not None
        if self._sampler is None:
            answers = await self._session.extend(self._first_ids(self._session), keep=1)
            self._sampler = Sampler(self._sampling, self._session.ids)
        else:
            answers = await self._session.extend(self.ids[-1:], keep=1, encoded=self._encoded)
        token, self._encoded = await self._asker.torch_thread.run(self._pick, answers[-1], urgent=True)
        ended = time.perf_counter()
        if self.ids:
            self._decode_steps += 1
            self._decode_seconds += ended - begun
            self._last_outside_seconds = answers[-1].outside_seconds
            self._outside_seconds += self._last_outside_seconds
        else:
            self.ttft_seconds = ended - self._begun_at
        piece = self._take(token)
        if self.finish_reason is not None:
            await self.aclose()
        return piece

    def _first_ids(self, session: Session) -> list[int]:
        """What the session does not hold yet of all that comes before the answer."""
        ids = list(self.prompt_ids)
        if self._conversation is not None:
            return ids[session.resume(ids) :]
        return [*session.unfed, *ids]

    def _pick(self, answer: Answer) -> tuple[int, Encoded | None]:
        """Choose the next token; and make its hidden state at once, while we have the torch thread."""
        assert self._session is not None
        assert self._sampler is not None
        ends = self._asker.ends
        token = self._sampler.next(ends.logits(answer.hidden()))
        if token in self._asker.eos_ids or len(self.ids) + 1 >= self._max_new_tokens:
            return token, None
        hidden = ends.embed(torch.tensor([[token]]), self._session.position)
        return token, self._session.encode(hidden)

    def _take(self, token: int) -> Piece:
        """Count a token in, and see whether it ends the answer."""
        assert self._session is not None
        self.ids.append(token)
        text = self._stops.push(self._detokenizer.push(token))
        reason: FinishReason | None = None
        if self._stops.found is not None:
            reason = "stop_string"
        elif token in self._asker.eos_ids:
            reason = "stop"
        elif len(self.ids) >= self._max_new_tokens:
            reason = "length"
        if reason is not None:
            text += self._flush()
            reason = "stop_string" if self._stops.found is not None else reason
        self.text += text
        # Chosen, but not sent yet: if this session goes on with something else, it goes before that.
        self._session.unfed = [token]
        self.finish_reason = reason
        if reason is not None and self._conversation is not None:
            self._session.messages = [*self._conversation, {"role": "assistant", "content": self.text}]
        return Piece(text, (token,))

    def _flush(self) -> str:
        """What detokenizer and stop strings still hold back."""
        return self._stops.push(self._detokenizer.finish()) + self._stops.finish()


def sampling_from(sampling: Sampling | None, fields: Mapping[str, Any]) -> Sampling:
    """Settings given as a whole or field by field. Raises `BadInput` for both, or for a field there is not."""
    if sampling is not None and not fields:
        return sampling
    if sampling is not None:
        raise BadInput("Sampling is given twice, as a whole and by fields.", hint="Give one of the two.")
    known = {field.name for field in dataclasses.fields(Sampling)}
    if unknown := sorted(set(fields) - known):
        raise BadInput(f"There is no sampling field {unknown[0]!r}.", hint=f"There are {', '.join(sorted(known))}.")
    return Sampling(**fields)
