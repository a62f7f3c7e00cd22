"""From chat messages to token ids, by the model's own chat template. Knows no model but its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from swarmnode.errors import BadInput

__all__ = ["chat_ids"]

MAX_MESSAGES = 10_000


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The ids that ask the model for the next message after `messages`.

    Args:
        tokenizer: the model's, with its chat template.
        messages: `{"role": "system" | "user" | "assistant" | …, "content": text}`, oldest first.

    Raises:
        BadInput: the model has no chat template, a message is malformed, or the template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise BadInput(
            "This model has no chat template: it was not made for chatting.",
            hint="Use it without chat, on plain text, or choose an instruct model.",
        )
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise BadInput(f"A chat has {len(messages)} messages.", hint=f"Give 1 to {MAX_MESSAGES}.")
    for number, message in enumerate(messages, start=1):
        if not all(isinstance(message.get(field), str) for field in ("role", "content")):
            raise BadInput(
                f"Message {number} of the chat has no text for role and content.",
                hint='Write each message as {"role": "user", "content": "…"}.',
            )
    try:
        ids: list[int] = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise BadInput(
            f"The model's chat template refuses these messages: {error}.",
            hint="Many templates want user and assistant in turn, and some know no system message.",
        ) from error
    return ids
