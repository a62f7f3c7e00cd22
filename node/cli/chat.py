"""`swarmnode chat`: talk with a model. The session, and so the cache of what was said, is kept between turns."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import trio

from swarmnode.errors import PeerFault, PromptTooLong, SwarmFault, SwarmnodeError

from .answers import adapter_of, sampling_of, tell
from .blame import blame
from .call import Call
from .lines import InputLines
from .paint import Paint
from .place import open_asking_node, require_peers

if TYPE_CHECKING:
    from swarmnode.models.settings import Sampling
    from swarmnode.node.library import Model, Session

__all__ = ["run"]

_HELP: Final = "/reset begins anew, /quit or Ctrl-D ends; Ctrl-C stops an answer, at the prompt it ends"

Message = dict[str, str]


def run(call: Call) -> None:
    """Talk until the person has had enough."""
    settings = call.settings
    sampling, adapter = sampling_of(settings), adapter_of(settings)

    async def talk() -> None:
        async with open_asking_node(call) as node:
            await require_peers(call, node)
            model = await node.load(
                settings.model, revision=settings.revision, dtype=settings.dtype, device=settings.device
            )
            call.voice.note(f"talking with {model.name}: {_HELP}")
            async with AsyncExitStack() as stack:
                await _Talk(call, model, sampling, adapter, stack).run()

    call.run(talk)


class _Talk:
    """The conversation so far and the session that holds it."""

    def __init__(
        self, call: Call, model: Model, sampling: Sampling, adapter: str | None, stack: AsyncExitStack
    ) -> None:
        self._call = call
        self._model = model
        self._sampling = sampling
        self._adapter = adapter
        self._stack = stack
        self._session: Session | None = None
        self._messages: list[Message] = []
        self._lines = InputLines()
        self._paint = Paint(sys.stderr)

    async def run(self) -> None:
        prompt = self._paint("green", "> ")
        while (line := await self._lines.next(prompt)) is not None:
            match line.strip():
                case "":
                    continue
                case "/quit" | "/exit":
                    return
                case "/reset":
                    await self._begin_anew()
                case "/help":
                    self._call.voice.note(_HELP)
                case text if text.startswith("/"):
                    self._call.voice.note(f"{text} is no command; {_HELP}")
                case text:
                    await self._turn(text)
        if self._lines.from_terminal:
            self._call.voice.note("")  # Ctrl-D leaves the cursor behind the prompt

    async def _begin_anew(self) -> None:
        self._messages.clear()
        await self._drop_session()
        self._call.voice.note("begun anew")

    async def _turn(self, text: str) -> None:
        """One message and its answer. A fault of the swarm ends the turn, not the talk."""
        asked = [*self._messages, {"role": "user", "content": text}]
        try:
            answer = await self._answer(asked)
        except (SwarmFault, PeerFault, PromptTooLong) as error:
            await self._drop_session()
            self._say_fault(error)
            return
        self._messages = [*asked, {"role": "assistant", "content": answer}]

    async def _answer(self, messages: list[Message]) -> str:
        is_new = self._session is None
        if self._session is None:
            self._session = await self._stack.enter_async_context(
                self._model.session(public_prefix=self._call.settings.public_prefix, adapter=self._adapter)
            )
        generation = self._session.generate(messages, sampling=self._sampling)
        with trio.CancelScope() as scope, self._call.interrupts.cancels_answer(scope):
            await tell(generation, self._call.voice, tells_route=is_new)
        if scope.cancelled_caught:
            # What was on its way when the answer was stopped is not worth sorting out: the next turn sends all again.
            await self._drop_session()
            self._call.voice.note("\nstopped")
        return generation.text

    async def _drop_session(self) -> None:
        self._session = None
        await self._stack.aclose()

    def _say_fault(self, error: SwarmnodeError) -> None:
        failed = blame(error).failed
        assert failed is not None
        if isinstance(error, PromptTooLong):
            self._call.voice.note("the conversation is longer than the model remembers; /reset begins anew")
        self._call.voice.say(failed)
