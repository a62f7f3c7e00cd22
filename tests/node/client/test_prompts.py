"""Prompts: text, ids and messages, and what is none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from swarmnode.errors import BadInput
from swarmnode.models.checkpoint import open_checkpoint
from swarmnode.node.client.prompts import prompt_ids


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return open_checkpoint(str(tiny_llama)).tokenizer()


def ids(tokenizer: PreTrainedTokenizerBase, prompt: Any, *, chat: bool = False) -> list[int]:
    return prompt_ids(tokenizer, prompt, chat=chat, vocab_size=260, continues=False)


def test_text_ids_and_messages(tokenizer: PreTrainedTokenizerBase) -> None:
    text = ids(tokenizer, "hi")
    assert tokenizer.decode(text) == "hi"
    assert ids(tokenizer, text) == ids(tokenizer, tuple(text)) == text
    turn = ids(tokenizer, [{"role": "user", "content": "hi"}])
    assert tokenizer.decode(turn) == "<s>user: hi</s><s>assistant: "
    assert ids(tokenizer, "hi", chat=True) == turn


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "The prompt is empty."),
        ([], "The prompt is empty."),
        ([3, 260], "Token id 260 is not in the model's vocabulary, 0 to 259."),
        ([-1], "Token id -1 is not"),
        ([True], "A prompt cannot be a list of bool."),
        ([1.5], "A prompt cannot be a list of float."),
        (["a", "b"], "A prompt cannot be a list of str."),
        ([{"role": "user"}], "Message 1 of the chat has no text"),
    ],
)
def test_what_is_no_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Any, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        ids(tokenizer, prompt)
    assert caught.value.message.startswith(message)
