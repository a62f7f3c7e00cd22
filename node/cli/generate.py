"""`swarmnode generate`: one prompt, one answer."""

from __future__ import annotations

import sys
from typing import Final

from swarmnode.errors import BadInput

from .answers import adapter_of, sampling_of, tell
from .call import Call
from .place import open_asking_node, require_peers

__all__ = ["read_prompt", "run"]

MAX_PROMPT_CHARACTERS: Final = 16 * 1024 * 1024


def run(call: Call) -> None:
    """Ask once."""
    settings = call.settings
    prompt = read_prompt(settings.prompt)
    sampling, adapter = sampling_of(settings), adapter_of(settings)

    async def ask() -> None:
        async with open_asking_node(call) as node:
            await require_peers(call, node)
            model = await node.load(
                settings.model, revision=settings.revision, dtype=settings.dtype, device=settings.device
            )
            answer = model.generate(
                prompt,
                chat=settings.chat,
                public_prefix=settings.public_prefix,
                adapter=adapter,
                sampling=sampling,
            )
            await tell(answer, call.voice)

    call.run(ask)


def read_prompt(given: str | None) -> str:
    """The prompt itself; `-` is all of standard input. Raises `BadInput`."""
    if given is None:
        raise BadInput("No prompt was given.", hint='Give one with --prompt "…", or --prompt - for standard input.')
    if given != "-":
        return _checked(given)
    try:
        return _checked(sys.stdin.read(MAX_PROMPT_CHARACTERS + 1))
    except UnicodeDecodeError as error:
        raise BadInput("Standard input is not UTF-8 text.", hint="Convert it to UTF-8 first.") from error


def _checked(prompt: str) -> str:
    if not prompt:
        raise BadInput("The prompt is empty.", hint="Give at least one character to go on from.")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise BadInput(f"The prompt has more than {MAX_PROMPT_CHARACTERS} characters.", hint="Give a shorter one.")
    return prompt
