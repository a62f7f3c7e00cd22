"""Tiny real models for swarms inside one process, and what plain transformers makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from swarmnode.models.cut import quiet_transformers
from swarmnode.testing import make_tiny_model


class Tiny:
    """A tiny model in a folder, and the same in plain transformers.

    Attributes:
        folder: what nodes load.
        whole: the stock model, float32.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with quiet_transformers():
            self.whole: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def greedy(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """What `generate()` adds to a prompt."""
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            answer = self.whole.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
            )
        added: list[int] = answer[0, ids.shape[1] :].tolist()
        return added


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Tiny]]:
    """Tiny models by family, each made once."""
    made: dict[str, Tiny] = {}

    def make(family: str) -> Tiny:
        if family not in made:
            made[family] = Tiny(make_tiny_model(tmp_path_factory.mktemp("tiny") / family, family))
        return made[family]

    yield make
    made.clear()


@pytest.fixture
def llama(tiny: Callable[[str], Tiny]) -> Tiny:
    """A llama of 4 blocks."""
    return tiny("llama")
