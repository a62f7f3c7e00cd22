"""Ends: what block 0 sees, logits of the last or of all positions, and one copy of a tied head."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from swarmnode.errors import ProtocolViolation
from swarmnode.models.ends import Ends
from swarmnode.models.kernels import have_kernels
from swarmnode.models.linears import OutputLinear
from swarmnode.models.tiny import VOCABULARY, tiny_config
from swarmnode.models.tiny_checkpoint import TinyCheckpoint, tiny_checkpoint

IDS = torch.tensor([[5, 17, 40, 8]])


@pytest.fixture(scope="module")
def gpt2() -> Iterator[TinyCheckpoint]:
    torch.set_num_threads(1)
    with tiny_checkpoint(tiny_config("gpt2")) as checkpoint:
        yield checkpoint


@pytest.fixture(scope="module")
def ends(gpt2: TinyCheckpoint) -> Ends:
    return gpt2.ends()


def test_they_know_themselves(ends: Ends) -> None:
    assert (ends.num_blocks, ends.hidden_size, ends.vocab_size, ends.dtype) == (4, 64, VOCABULARY, torch.float32)


def test_learned_positions_are_added_at_the_right_place(gpt2: TinyCheckpoint, ends: Ends) -> None:
    wte, wpe = gpt2.whole.transformer.wte.weight, gpt2.whole.transformer.wpe.weight
    assert torch.equal(ends.embed(IDS, 7), wte[IDS] + wpe[7:11].unsqueeze(0))


def test_logits_of_the_last_and_of_all(gpt2: TinyCheckpoint, ends: Ends) -> None:
    hidden = torch.randn(2, 5, 64)
    every = ends.logits(hidden, last_only=False)
    last = ends.logits(hidden)
    assert (every.shape, last.shape) == ((2, 5, VOCABULARY), (2, 1, VOCABULARY))
    whole = gpt2.whole
    with torch.inference_mode():
        assert torch.equal(every, whole.lm_head(whole.transformer.ln_f(hidden)))
        assert torch.equal(last, whole.lm_head(whole.transformer.ln_f(hidden[:, -1:])))


def test_what_was_embedded_does_not_leak_into_logits(ends: Ends) -> None:
    hidden = torch.randn(1, 1, 64)
    before = ends.logits(hidden)
    ends.embed(IDS, 0)
    assert torch.equal(ends.logits(hidden), before)


@pytest.mark.parametrize("shape", [(4, 64), (1, 4, 63), (1, 0, 64)])
def test_another_shape_is_refused(ends: Ends, shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolViolation, match="has shape"):
        ends.logits(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_logits(gpt2: TinyCheckpoint, dtype: torch.dtype) -> None:
    ends = gpt2.ends(dtype)
    hidden = ends.embed(IDS, 0)
    assert hidden.dtype == dtype
    assert ends.logits(hidden.float()).dtype == torch.float32


def test_a_tied_head_is_held_once() -> None:
    sizes = []
    for tied in (True, False):
        with tiny_checkpoint(tiny_config("llama", tie_word_embeddings=tied)) as checkpoint:
            sizes.append(checkpoint.ends().weight_bytes)
    assert sizes[1] - sizes[0] == VOCABULARY * 64 * 4


def test_towers_for_images_are_left_out() -> None:
    with tiny_checkpoint(tiny_config("gemma3")) as checkpoint:
        names = {name for name, _ in checkpoint.ends().model.named_parameters()}
    assert names == {"model.language_model.embed_tokens.weight", "model.language_model.norm.weight"}


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("cohere", {"logit_scale": 0.25}, lambda logits: logits * 0.25),
        ("granite", {"logits_scaling": 4.0}, lambda logits: logits / 4.0),
        ("gemma2", {"final_logit_softcapping": 2.0}, lambda logits: torch.tanh(logits / 2.0) * 2.0),
    ],
)
def test_scales_and_caps_of_the_logits_are_the_ends_work(
    family: str, changes: dict[str, float], expected: object
) -> None:
    with tiny_checkpoint(tiny_config(family, **changes)) as checkpoint:
        whole = checkpoint.whole
        hidden = torch.randn(1, 3, 64)
        with torch.inference_mode():
            plain = whole.lm_head(whole.model.norm(hidden))
        assert callable(expected)
        torch.testing.assert_close(checkpoint.ends().logits(hidden, last_only=False), expected(plain))


def test_logits_of_few_rows_by_our_kernel(gpt2: TinyCheckpoint) -> None:
    """A row's bits are its own, close to the stock ones; many rows, and training, have the stock kernel."""
    stock, ours = gpt2.ends(), gpt2.ends()
    ours.take_kernels()
    hidden = torch.randn(1, 33, 64)
    few = ours.logits(hidden[:, :32], last_only=False)
    assert torch.allclose(few, stock.logits(hidden[:, :32], last_only=False), atol=1e-5, rtol=1e-5)
    if have_kernels(hidden):
        assert type(ours.model.get_output_embeddings()) is OutputLinear
        for row in range(32):
            assert torch.equal(ours.logits(hidden[:, row : row + 1]), few[:, row : row + 1])
    assert torch.equal(ours.logits(hidden, last_only=False), stock.logits(hidden, last_only=False))
    learnt = hidden[:, :1].clone().requires_grad_()
    ours.model.get_output_embeddings()(learnt).sum().backward()
    assert learnt.grad is not None
