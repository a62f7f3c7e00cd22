"""How the next token is chosen, as a person may set it. Knows no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from swarmnode.errors import BadInput

__all__ = ["Sampling"]

MAX_NEW_TOKENS = 1_000_000
MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 1_000
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen and when to stop. The defaults are greedy: always the likeliest token.

    Attributes:
        max_new_tokens: stop after so many tokens.
        temperature: 0 is greedy, 1 the model's own odds, higher is wilder.
        top_k: choose among the k likeliest only; 0 is no limit.
        top_p: choose among the likeliest that together hold this probability; 1 is no limit.
        min_p: leave out what is less likely than this share of the likeliest; 0 is no limit.
        repetition_penalty: above 1 makes tokens that occurred already, in the prompt too, less likely.
        seed: the same seed gives the same text; None draws a new one each time.
        stop: the text ends before the first of these strings.

    Raises:
        BadInput: a value makes no sense; the message names the field.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what makes no sense, at once and by name."""
        self._whole("max_new_tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS)
        self._number("temperature", self.temperature, 0.0, 100.0)
        self._whole("top_k", self.top_k, 0, 2**31 - 1)
        self._number("top_p", self.top_p, 0.0, 1.0, above=True)
        self._number("min_p", self.min_p, 0.0, 1.0)
        self._number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        if self.seed is not None:
            self._whole("seed", self.seed, 0, MAX_SEED)
        object.__setattr__(self, "stop", _strings(self.stop))
        if len(self.stop) > MAX_STOP_STRINGS:
            raise BadInput(f"There are {len(self.stop)} stop strings.", hint=f"Give at most {MAX_STOP_STRINGS}.")
        if not all(0 < len(one) <= MAX_STOP_CHARACTERS for one in self.stop):
            raise BadInput(
                "A stop string is empty or too long.", hint=f"Give 1 to {MAX_STOP_CHARACTERS} characters each."
            )

    @property
    def greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.temperature == 0.0

    @staticmethod
    def _whole(name: str, value: object, least: int, most: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise BadInput(f"{name} is {value!r}.", hint=f"Give a whole number from {least} to {most}.")

    @staticmethod
    def _number(name: str, value: object, least: float, most: float, *, above: bool = False) -> None:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not least <= float(str(value)) <= most or (above and value == least):
            lower = f"above {least:g}" if above else f"from {least:g}"
            raise BadInput(f"{name} is {value!r}.", hint=f"Give a number {lower} up to {most:g}.")


def _strings(value: object) -> tuple[str, ...]:
    """A list is accepted, as every caller that comes from JSON has one, and kept as a tuple, which nobody changes."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise BadInput("stop must be a list of strings.", hint="Give each stop string as an item of its own.")
    return tuple(value)
