"""From what a person or program asks to token ids: text, ids or chat messages. Knows the tokenizer, not the swarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from swarmnode.errors import BadInput
from swarmnode.models.chat import chat_ids

__all__ = ["Prompt", "is_conversation", "prompt_ids"]

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


def is_conversation(prompt: Prompt) -> bool:
    """Whether the prompt is a list of messages."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, chat: bool, vocab_size: int, continues: bool
) -> list[int]:
    """The token ids of a prompt.

    Args:
        chat: a text is one message of a user.
        continues: the prompt goes on from other tokens, so the tokenizer adds no beginning of its own.

    Raises:
        BadInput: it is empty, holds ids the model does not have, or is not a prompt at all.
    """
    if isinstance(prompt, str):
        ids = _text_ids(tokenizer, prompt, chat=chat, continues=continues)
    elif is_conversation(prompt):
        ids = chat_ids(tokenizer, cast("Sequence[Mapping[str, str]]", prompt))
    elif all(isinstance(id, int) and not isinstance(id, bool) for id in prompt):
        ids = list(cast("Sequence[int]", prompt))
    else:
        raise BadInput(
            f"A prompt cannot be a {type(prompt).__name__} of {type(prompt[0]).__name__}.",
            hint="Give a text, token ids, or chat messages.",
        )
    if not ids:
        raise BadInput("The prompt is empty.", hint="Give at least one token to go on from.")
    if outside := [id for id in ids if not 0 <= id < vocab_size]:
        raise BadInput(f"Token id {outside[0]} is not in the model's vocabulary, 0 to {vocab_size - 1}.")
    return ids


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool, continues: bool) -> list[int]:
    if chat:
        return chat_ids(tokenizer, [{"role": "user", "content": text}])
    ids: list[int] = tokenizer(text, add_special_tokens=not continues)["input_ids"]
    return ids
