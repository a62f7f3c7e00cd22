"""From token ids to text as they come, never half a character. Knows no model."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

__all__ = ["Detokenizer"]

UNFINISHED = "\ufffd"
"""What tokenizers print for bytes that are no character (yet)."""

MAX_HELD_IDS = 16
"""More ids than the longest character needs, so that a run of senseless bytes does not hold the text back for ever."""

MAX_CHARACTER_IDS = 4
"""UTF-8 has at most four bytes to a character, and a token holds at least one."""


class Detokenizer:
    """Text from ids, piece by piece; the pieces together are what `tokenizer.decode` makes of all the ids.

    A tokenizer's text for an id depends on the ids before it (a leading space is dropped, bytes join to a character),
    so ids are decoded together with the last few that were printed, and only what is new is printed. The cost is
    linear in the number of ids. Special tokens are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._skipped = _special_ids(tokenizer)
        self._printed: list[int] = []
        self._held: list[int] = []

    def push(self, id: int) -> str:
        """The text that `id` completes; often one token's, empty while a character is unfinished."""
        if id in self._skipped:
            return ""
        self._held.append(id)
        before, now = self._decode(self._printed), self._decode(self._printed + self._held)
        if now.endswith(UNFINISHED) or not now.startswith(before) or len(now) == len(before):
            return self._overflow() if len(self._held) > MAX_HELD_IDS else ""
        self._printed, self._held = self._held, []
        return now[len(before) :]

    def finish(self) -> str:
        """What is still held back, without a character that was never finished."""
        before, now = self._decode(self._printed), self._decode(self._printed + self._held)
        text = now[len(before) :] if now.startswith(before) else self._decode(self._held)
        self._printed, self._held = [], []
        return text.rstrip(UNFINISHED)

    def _overflow(self) -> str:
        """Let go of the held ids that cannot belong to an unfinished character any more."""
        before, now = self._decode(self._printed), self._decode(self._printed + self._held)
        for cut in range(len(self._held) - MAX_CHARACTER_IDS + 1, 0, -1):
            head, tail = self._held[:cut], self._held[cut:]
            text = self._decode(self._printed + head)
            # Cutting through a character would show: its parts apart print more than it does whole.
            if text.startswith(before) and text + self._decode(tail) == now:
                break
        else:
            head, tail = self._held[: -MAX_CHARACTER_IDS + 1], self._held[-MAX_CHARACTER_IDS + 1 :]
            text = before + self._decode(head)
        self._held = tail
        if len(text) > len(before):
            self._printed = head
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that `decode(skip_special_tokens=True)` leaves out."""
    if tokenizer.is_fast:
        return frozenset(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset(tokenizer.all_special_ids)
