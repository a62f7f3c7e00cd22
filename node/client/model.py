"""A model of the swarm as programs use it: text, sessions, routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase

from swarmnode.models.settings import Sampling
from swarmnode.node.routes import Route
from swarmnode.protocols.records import ModelId

from .asker import Asker
from .generation import Generation
from .prompts import Prompt
from .session import Session, open_session

__all__ = ["Model"]


class Model:
    """A model whose ends are here and whose blocks are in the swarm. Made by `Node.load`.

    Attributes:
        id: which weights exactly.
        num_blocks: how many blocks it has.
        context_tokens: how many tokens it was made for.
        tokenizer: transformers' own.
    """

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self.id: ModelId = asker.id
        self.num_blocks = asker.num_blocks
        self.context_tokens = asker.context_tokens
        self.tokenizer: PreTrainedTokenizerBase = asker.tokenizer

    @property
    def name(self) -> str:
        """What it is called in the swarm."""
        return self.id.name

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states that `Session.step` takes."""
        return self._asker.ends.hidden_size

    async def route(self, *, tokens: int = 0, adapter: str | None = None) -> Route:
        """The servers that a session of `tokens` would run on now, with an adapter as for `generate`.

        Raises:
            NoPeers, ModelMismatch, BlocksMissing, AdapterMissing: there is no route.
        """
        return await self._asker.servers.plan(tokens=tokens, adapter=adapter)

    def generate(
        self,
        prompt: Prompt,
        *,
        chat: bool = False,
        public_prefix: int = 0,
        adapter: str | None = None,
        sampling: Sampling | None = None,
        **fields: Any,
    ) -> Generation:
        """An answer to `prompt`: `async for piece in model.generate("Once upon a time")`.

        Args:
            prompt: text, token ids, or a list of `{"role", "content"}` messages.
            chat: a text is one message of a user, in the model's chat template.
            public_prefix: so many of the prompt's first tokens are no secret, such as those of a system prompt that
                everybody uses. Servers that agree share the work on them between clients, who can tell by the time.
            adapter: the LoRA adapter to use, of those that servers have: its name, or `name@digest` with the first
                hex digits of its digest where there are several of the name.
            sampling: or its fields by name, such as `max_new_tokens=20, temperature=0.7`.

        Raises:
            BadInput: settings that make no sense. The rest is raised when the answer is awaited.
        """
        return Generation(
            self._asker,
            prompt,
            chat=chat,
            public_prefix=public_prefix,
            adapter=adapter,
            sampling=sampling,
            fields=fields,
        )

    @asynccontextmanager
    async def session(
        self, *, max_tokens: int | None = None, public_prefix: int = 0, adapter: str | None = None
    ) -> AsyncIterator[Session]:
        """A session that keeps its KV cache between turns, for as long as the block runs.

        Args:
            max_tokens: how many tokens the servers are asked to promise room for; the session may outgrow it while
                they have room. None is a moderate start.
            public_prefix: as for `generate`, of the session's first tokens.
            adapter: as for `generate`; for all that the session does.

        Raises:
            BadInput: the public prefix.
            NoPeers, ModelMismatch, BlocksMissing, AdapterMissing, PeerFault: no route of servers takes it.
        """
        async with open_session(self._asker, max_tokens, public_prefix, adapter) as session:
            yield session
