"""Chats become token ids by the model's own template."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from swarmnode.errors import BadInput
from swarmnode.models.chat import chat_ids
from swarmnode.models.checkpoint import Checkpoint

USER = {"role": "user", "content": "What is 2+2?"}


def test_the_bundled_models_template(bundled: Checkpoint) -> None:
    tokenizer = bundled.tokenizer()
    ids = chat_ids(tokenizer, [USER])
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    longer = chat_ids(tokenizer, [USER, {"role": "assistant", "content": "4"}, USER])
    assert longer[: len(ids)] == ids


def plain(template: str | None) -> Any:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", chat_template=template)


def test_a_model_without_a_template_is_refused() -> None:
    with pytest.raises(BadInput, match="no chat template") as caught:
        chat_ids(plain(None), [USER])
    assert "instruct" in caught.value.hint


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "0 messages"),
        ([{"role": "user"}], "Message 1"),
        ([USER, {"role": "user", "content": None}], "Message 2"),
        ([{"role": 3, "content": "x"}], "Message 1"),
    ],
)
def test_malformed_messages_are_refused(messages: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        chat_ids(plain("{{ messages }}"), messages)


def test_what_the_template_refuses_is_said_in_its_words() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    with pytest.raises(BadInput, match="no system role here"):
        chat_ids(plain(template), [{"role": "system", "content": "x"}])
    with pytest.raises(BadInput, match="chat template refuses"):
        chat_ids(plain("{{ broken"), [USER])
