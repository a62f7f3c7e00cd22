"""Training through a span: gradients are those of autograd on the whole model; what is kept, refused and foretold."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmnode.errors import FamilyNotCertified, ProtocolViolation
from swarmnode.models import cut
from swarmnode.models.devices import Placement, settle
from swarmnode.models.families import all_certificates, certificate
from swarmnode.models.peak import Ledger
from swarmnode.models.span import Span
from swarmnode.models.tiny import tiny_config
from swarmnode.models.tiny_checkpoint import TinyCheckpoint, tiny_checkpoint
from swarmnode.models.training import Training, backward, finish, forward, open_training
from swarmnode.models.training_comparison import compare_training
from swarmnode.models.training_cost import KERNEL_BYTES, cost_of

WIDTH = 64
LEAST_TRAINED = 100
COMPARED = (
    *("bert", "bloom", "cohere2", "deepseek_v3", "exaone4", "falcon", "gemma2", "gemma3", "gpt2", "gpt_neo"),
    *("gpt_oss", "granitemoehybrid", "jamba", "lfm2", "llama", "mamba", "mistral", "mixtral", "olmo2", "opt", "phi3"),
    *("qwen3", "qwen3_5", "qwen3_moe"),
)
"""Dense and mixed, with windows, sinks, soft caps, latent attention, recurrent states: what is cheap of each kind."""


@pytest.fixture(scope="module")
def llama() -> Iterator[TinyCheckpoint]:
    torch.set_num_threads(1)
    with tiny_checkpoint(tiny_config("llama")) as checkpoint:
        yield checkpoint


@pytest.fixture(scope="module")
def span(llama: TinyCheckpoint) -> Span:
    return llama.span(1, 4)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", COMPARED)
def test_gradients_in_parts_are_those_of_the_whole(family: str) -> None:
    torch.set_num_threads(1)
    with tiny_checkpoint(tiny_config(family)) as checkpoint:
        assert compare_training(checkpoint) == ""
    assert certificate(family).trains


def test_in_float64_they_are_so_to_the_last_digits(monkeypatch: pytest.MonkeyPatch, llama: TinyCheckpoint) -> None:
    monkeypatch.setattr("swarmnode.models.training_comparison.TRAINING_TOLERANCE", 1e-13)
    with tiny_checkpoint(tiny_config("llama")) as checkpoint:
        checkpoint.whole.double()
        assert compare_training(checkpoint) == ""


def test_a_wrong_gradient_is_found_and_said(monkeypatch: pytest.MonkeyPatch, llama: TinyCheckpoint) -> None:
    honest = Span.without_cache
    monkeypatch.setattr(Span, "without_cache", lambda span, hidden: honest(span, hidden) + 0.01 * hidden)
    assert compare_training(llama).startswith("Gradients in parts differ from those of the whole (by ")


def test_stock_code_without_gradients_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch, llama: TinyCheckpoint) -> None:
    honest = Span.without_cache
    monkeypatch.setattr(Span, "without_cache", lambda span, hidden: honest(span, hidden).detach())
    assert compare_training(llama).startswith("Its stock code gives no gradients: RuntimeError: ")


def test_at_least_a_hundred_families_train() -> None:
    assert sum(entry.trains for entry in all_certificates()) >= LEAST_TRAINED


def test_a_family_that_does_not_is_refused_by_name_and_reason(monkeypatch: pytest.MonkeyPatch, span: Span) -> None:
    monkeypatch.setattr(span.model.config, "model_type", "xlm")
    with pytest.raises(FamilyNotCertified) as refused:
        open_training(span)
    assert refused.value.message == (
        "A model of the family 'xlm' cannot be trained in parts: It keeps no list of whole blocks."
    )


def test_what_comes_out_is_what_a_session_gets(span: Span) -> None:
    rows = noise(2, 5, WIDTH)
    assert torch.allclose(forward(span, rows), span.step(span.open_cache(), rows, 0), rtol=1e-5, atol=1e-6)


def test_a_prompt_is_added_to_what_enters_its_block(span: Span) -> None:
    rows, prompts = noise(2, 5, WIDTH), noise(3, 2, WIDTH, seed=2)
    expected = rows
    for block in range(3):
        expected = expected.clone()
        expected[:, :2] += prompts[block]
        expected = forward(span.part(1 + block, 2 + block), expected)
    assert torch.equal(forward(span, rows, prompts), expected)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 5), tokens=st.integers(2, 9), group_rows=st.integers(1, 6), prompted=st.booleans())
def test_rows_know_nothing_of_each_other(span: Span, rows: int, tokens: int, group_rows: int, prompted: bool) -> None:
    hidden, gradient = noise(rows, tokens, WIDTH), noise(rows, tokens, WIDTH, seed=2)
    prompts = noise(3, 2, WIDTH, seed=3) if prompted else None
    found = backward(span, hidden, gradient, prompts, group_rows=group_rows)
    alone = [backward(span, hidden[row : row + 1], gradient[row : row + 1], prompts) for row in range(rows)]
    assert torch.allclose(found.hidden, torch.cat([each.hidden for each in alone]), rtol=1e-4, atol=1e-6)
    if found.prompts is None:
        assert prompts is None
    else:
        together = torch.stack([each.prompts for each in alone if each.prompts is not None]).sum(0)
        assert torch.allclose(found.prompts, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_arguments_give_the_same_bits(llama: TinyCheckpoint, dtype: torch.dtype) -> None:
    span = llama.span(0, 4, dtype)
    arguments = noise(3, 9, WIDTH), noise(3, 9, WIDTH, seed=2), noise(4, 2, WIDTH, seed=3)
    first, again = (backward(span, *arguments, group_rows=2) for _ in range(2))
    assert torch.equal(first.hidden, again.hidden)
    assert first.prompts is not None
    assert again.prompts is not None
    assert torch.equal(first.prompts, again.prompts)
    assert (first.hidden.dtype, first.prompts.dtype) == (dtype, torch.float32)


def test_gradients_in_bfloat16_are_near_those_in_float32(llama: TinyCheckpoint) -> None:
    arguments = noise(2, 9, WIDTH), noise(2, 9, WIDTH, seed=2)
    exact = backward(llama.span(0, 4), *arguments).hidden
    near = backward(llama.span(0, 4, torch.bfloat16), *arguments).hidden.float()
    assert (near - exact).norm() < 0.05 * exact.norm()


def test_weights_are_as_before_and_have_no_gradient(span: Span) -> None:
    before = [(weight.clone(), weight.requires_grad) for weight in span.weights()]
    backward(span, noise(1, 3, WIDTH), noise(1, 3, WIDTH))
    for (value, wanted), weight in zip(before, span.weights(), strict=True):
        assert torch.equal(value, weight)
        assert weight.requires_grad == wanted
        assert weight.grad is None


def test_what_was_given_is_left_alone(span: Span) -> None:
    rows, gradient = noise(2, 3, WIDTH), noise(2, 3, WIDTH, seed=2)
    backward(span, rows, gradient, noise(3, 2, WIDTH))
    assert torch.equal(rows, noise(2, 3, WIDTH))
    assert torch.equal(gradient, noise(2, 3, WIDTH, seed=2))
    assert not rows.requires_grad


def test_tensors_made_in_inference_mode_are_taken(span: Span) -> None:
    with torch.inference_mode():
        rows, gradient, prompts = noise(2, 3, WIDTH), noise(2, 3, WIDTH, seed=2), noise(3, 2, WIDTH, seed=3)
    plain = backward(span, noise(2, 3, WIDTH), noise(2, 3, WIDTH, seed=2), noise(3, 2, WIDTH, seed=3))
    assert torch.equal(backward(span, rows, gradient, prompts).hidden, plain.hidden)
    with torch.inference_mode():
        assert torch.equal(backward(span, rows, gradient, prompts).hidden, plain.hidden)


@pytest.mark.parametrize("offloaded", [(), (1, 2)])
def test_blocks_that_were_put_somewhere_train_as_well(llama: TinyCheckpoint, offloaded: tuple[int, ...]) -> None:
    arguments = noise(2, 5, WIDTH), noise(2, 5, WIDTH, seed=2), noise(4, 2, WIDTH, seed=3)
    expected = backward(llama.span(0, 4), *arguments)
    model = llama.part(cut.Part("span", 0, 4))
    settle(model, Placement((torch.device("cpu"),) * 4, frozenset(offloaded)))
    found = backward(Span(model), *arguments)
    assert torch.equal(found.hidden, expected.hidden)
    assert found.prompts is not None
    assert expected.prompts is not None
    assert torch.equal(found.prompts, expected.prompts)


def test_nothing_stays_behind_a_pass_that_is_given_up(span: Span) -> None:
    rows = noise(1, 3, WIDTH)
    work = open_training(span).backward(rows, noise(1, 3, WIDTH), None)
    for _ in range(4):
        next(work)
    gone = weakref.ref(rows)
    work.close()
    del rows, work
    gc.collect()
    assert gone() is None


def test_it_pauses_once_a_block_on_either_way(span: Span) -> None:
    rows = noise(1, 3, WIDTH)
    assert len(list(open_training(span).forward(rows, None))) == 3 - 1
    assert len(list(open_training(span).backward(rows, rows, None))) == 2 + 3 - 1


@pytest.mark.parametrize(
    ("rows", "gradient", "prompts", "said"),
    [
        ((2, 5, WIDTH + 1), (2, 5, WIDTH + 1), None, r"Rows have shape \[2, 5, 65\], not \[rows, tokens, 64\]"),
        ((2, WIDTH), (2, WIDTH), None, r"Rows have shape \[2, 64\]"),
        ((2, 0, WIDTH), (2, 0, WIDTH), None, r"Rows have shape \[2, 0, 64\]"),
        ((2, 5, WIDTH), (1, 5, WIDTH), None, r"A gradient of shape \[1, 5, 64\] came to rows of \[2, 5, 64\]"),
        ((2, 5, WIDTH), (2, 5, WIDTH), (2, 1, WIDTH), r"Prompts have shape \[2, 1, 64\], not \[3, tokens, 64\]"),
        ((2, 5, WIDTH), (2, 5, WIDTH), (3, 6, WIDTH), "Prompts of 6 tokens came to rows of 5"),
    ],
)
def test_other_shapes_are_refused(
    span: Span, rows: tuple[int, ...], gradient: tuple[int, ...], prompts: tuple[int, ...] | None, said: str
) -> None:
    with pytest.raises(ProtocolViolation, match=said) as refused:
        backward(span, torch.zeros(rows), torch.zeros(gradient), None if prompts is None else torch.zeros(prompts))
    assert refused.value.span == (1, 4)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral", "qwen3_5_text", "gpt_oss", "deepseek_v3"])
def test_memory_is_foretold(family: str) -> None:
    torch.set_num_threads(1)
    with tiny_checkpoint(tiny_config(family, max_position_embeddings=1024)) as checkpoint:
        training = Training(checkpoint.span(0, cut.num_blocks(checkpoint.config)))
    cost = finish(cost_of(training))
    for rows, tokens in ((1, 120), (3, 100), (8, 64), (1, 600)):
        hidden = noise(rows, tokens, training.span.hidden_size)
        with Ledger(numbers=True) as ledger:
            taken = ledger.peak_bytes(lambda hidden=hidden: finish(training.backward(hidden, hidden, None)))
        assert taken <= cost.group_bytes(4, rows, tokens) - KERNEL_BYTES <= 3 * taken
