"""Text comes piece by piece, whole characters only, and the pieces are what the tokenizer says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from swarmnode.models.checkpoint import Checkpoint
from swarmnode.models.detokenize import MAX_HELD_IDS, Detokenizer

HALF = "\ufffd"
TEXT = st.text(max_size=60) | st.text(
    alphabet="aé漢字🙂👩‍👩‍👧‍👦🇩🇪e\u0301नि \n\t'.", max_size=60
)  # letters, CJK, joined emoji, flags, combining marks
UNHURRIED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def byte_level(bundled: Checkpoint) -> Any:
    """SmolLM2's: GPT-2 style, every token some bytes."""
    return bundled.tokenizer()


@pytest.fixture(scope="module")
def byte_fallback() -> Any:
    """Llama-2 style: words with ▁ for the space, and single bytes for what is no word."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for word in ("▁", "a", "b", "▁a", "▁b", "ab", "▁ab", "é", "."):
        vocabulary[word] = len(vocabulary)
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁a", "b")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@UNHURRIED
@given(text=TEXT)
def test_the_pieces_together_are_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(id) for id in ids]
    if HALF not in decode(tokenizer, ids):
        assert not any(HALF in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.finish() == decode(tokenizer, ids).rstrip(HALF)


@UNHURRIED
@given(text=TEXT, cut=st.integers(0, 60))
def test_an_answer_cut_off_inside_a_character_shows_no_half_of_it(tokenizer: Any, text: str, cut: int) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = decode(tokenizer, ids)
    assume(HALF not in whole)  # SmolLM2's vocabulary lacks some bytes of rare characters
    detokenizer = Detokenizer(tokenizer)
    shown = "".join(map(detokenizer.push, ids[:cut])) + detokenizer.finish()
    assert whole.startswith(shown)


@UNHURRIED
@given(ids=st.lists(st.integers(0, 49151), max_size=80))
def test_any_byte_level_ids_give_what_the_tokenizer_says(byte_level: Any, ids: list[int]) -> None:
    detokenizer = Detokenizer(byte_level)
    shown = "".join(map(detokenizer.push, ids)) + detokenizer.finish()
    assert shown.rstrip(HALF) == decode(byte_level, ids).rstrip(HALF)


@UNHURRIED
@given(ids=st.lists(st.integers(0, 258), max_size=80))
def test_senseless_bytes_neither_stop_the_text_nor_break_it(byte_fallback: Any, ids: list[int]) -> None:
    word = byte_fallback.convert_tokens_to_ids("▁ab")
    detokenizer = Detokenizer(byte_fallback)
    shown = "".join(map(detokenizer.push, [*ids, word, word])) + detokenizer.finish()
    assert shown.endswith("ab ab")


def test_special_and_unknown_ids_print_nothing(byte_level: Any) -> None:
    hello = byte_level("Hello world")["input_ids"]
    detokenizer = Detokenizer(byte_level)
    shown = "".join(map(detokenizer.push, [1, *hello[:1], 2, 10**6, *hello[1:], 0])) + detokenizer.finish()
    assert shown == "Hello world"


def test_a_space_is_kept_after_special_tokens(byte_fallback: Any) -> None:
    word = byte_fallback.convert_tokens_to_ids("▁ab")
    detokenizer = Detokenizer(byte_fallback)
    assert [detokenizer.push(id) for id in (1, word, 2, word)] == ["", "ab", "", " ab"]


class Counted:
    """A tokenizer that counts the ids it was asked to decode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.decoded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def decode(self, ids: list[int], **settings: Any) -> str:
        self.decoded += len(ids)
        return str(self.tokenizer.decode(ids, **settings))


@pytest.mark.parametrize("kind", ["words", "bytes", "unknown"])
def test_the_cost_is_linear(tokenizer: Any, kind: str) -> None:
    if kind == "words":
        ids = tokenizer("ab ab . " * 400, add_special_tokens=False)["input_ids"]
    elif kind == "bytes":
        ids = [tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens([200])[0])] * 2000
    else:
        ids = [10**6] * 2000
    counted = Counted(tokenizer)
    detokenizer = Detokenizer(counted)
    for id in ids:
        detokenizer.push(id)
    # A few decodes of a window for each id, however long the text.
    assert counted.decoded < len(ids) * 8 * MAX_HELD_IDS
