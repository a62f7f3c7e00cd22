"""Quantised spans: what quanto itself makes of the same blocks, the same bits from disk, exact when asked to be."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimum.quanto import HqqOptimizer, QLinear, freeze, qint4, qint8
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from swarmnode.errors import BadInput, CheckpointBroken
from swarmnode.models import linears, quantised, quantising, runs
from swarmnode.models.checkpoint import Checkpoint, open_checkpoint
from swarmnode.models.cut import causal_class, quantised_layers, quiet_transformers
from swarmnode.models.footprint import footprint
from swarmnode.models.packed import SHORT_STEP
from swarmnode.models.quantised import GROUP_COLUMNS, SCHEMES, QuantisedLinear, Scheme
from swarmnode.models.quantising import quantise
from swarmnode.models.span import Piece, Span
from swarmnode.models.tiny import tiny_config

BLOCKS = 4
FAMILIES = ("llama", "qwen2", "olmo", "mixtral", "gemma3_text", "gpt_neox")
"""Of olmo's blocks no weight at all is left that is not quantised."""
SEED = 5
CPU = torch.device("cpu")
TOLERANCE = {torch.bfloat16: 0.03, torch.float32: 1e-5}
"""What another order of adding may change, relative to the largest value: some roundings of bfloat16, and nothing."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where quantised blocks are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "swarmnode" / "quantised"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of each family."""
    return {family: save(tiny_config(family), tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture
def llama(folders: dict[str, Path]) -> Checkpoint:
    return open_checkpoint(str(folders["llama"]))


def save(config: PretrainedConfig, folder: Path) -> Path:
    torch.manual_seed(SEED)
    stock, own = causal_class(config)
    with quiet_transformers():
        stock(own).save_pretrained(folder)
    return folder


def by_quanto(folder: Path, like: Span, scheme: Scheme, dtype: torch.dtype) -> PreTrainedModel:
    """The whole stock model with the same layers quantised by quanto itself."""
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    for path in quantised_layers(like.model):
        linear = model.get_submodule(path)
        assert type(linear) is nn.Linear
        if scheme == "int8":
            layer = QLinear.from_module(linear, weights=qint8)
        else:
            layer = QLinear.from_module(linear, weights=qint4, optimizer=HqqOptimizer())
            layer.weight_group_size = GROUP_COLUMNS
        model.set_submodule(path, layer)
    with torch.no_grad():
        freeze(model)
    return model


def through(span: Span, hidden: torch.Tensor) -> torch.Tensor:
    return span.run([Piece(span.open_session(), hidden, 0)], deterministic=True)[0]


def noise(tokens: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed))


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).detach().abs().max() / other.float().abs().max().detach())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_span_is_what_quanto_makes_of_the_same_blocks(
    folders: dict[str, Path], family: str, scheme: Scheme, dtype: torch.dtype
) -> None:
    span = open_checkpoint(str(folders[family])).load_span(0, BLOCKS, dtype=dtype, quant=scheme)
    whole = by_quanto(folders[family], span, scheme, dtype)
    layers = quantised_layers(span.model)
    assert len(layers) >= BLOCKS
    for path, layer in layers.items():
        theirs = whole.get_submodule(path).weight.dequantize()
        assert gap(layer.weight, theirs) < TOLERANCE[dtype], path
    ids = torch.tensor([[1, 5, 3, 8, 2, 7]])
    with torch.no_grad():  # quanto's layers cannot run in inference mode
        expected = whole(ids, output_hidden_states=True, use_cache=False).hidden_states
    out = through(span, expected[0])
    last = whole.get_decoder().get_submodule("final_layer_norm" if family == "gpt_neox" else "norm")
    with torch.no_grad():
        assert gap(last(out), expected[-1]) < TOLERANCE[dtype]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_second_load_quantises_nothing_and_gives_the_same_bits(
    llama: Checkpoint, scheme: Scheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = llama.load_span(0, BLOCKS, quant=scheme)
    monkeypatch.setattr(quantising, "quantise", None)
    again = llama.load_span(1, 3, quant=scheme)
    layers = quantised_layers(first.model)
    for path, layer in quantised_layers(again.model).items():
        for part in layer.parts:
            mine, before = getattr(layer, part), getattr(layers[path], part)
            assert (mine is None and before is None) or torch.equal(mine, before)
    hidden = noise(7, first.hidden_size)
    assert torch.equal(through(again, hidden), through(first.part(1, 3), hidden))


@pytest.mark.parametrize("harm", ["cut", "header", "other", "empty", "folder"])
def test_a_damaged_file_is_made_again_with_one_line(
    llama: Checkpoint, cache: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = through(llama.load_span(1, 2, quant="int8"), noise(5, 64))
    (file,) = cache.glob("*/block-0001.safetensors")
    good = file.read_bytes()
    match harm:
        case "cut":
            file.write_bytes(good[:-100])
        case "header":
            file.write_bytes(good[:20] + b"{" + good[21:])
        case "other":
            llama.load_span(1, 2, quant="int4")
            (other,) = cache.glob("*int4*/block-0001.safetensors")
            shutil.copy(other, file)
        case "empty":
            file.write_bytes(b"")
        case "folder":
            file.unlink()
            shutil.rmtree(file.parent)
            file.parent.write_bytes(b"no folder")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(through(llama.load_span(1, 2, quant="int8"), noise(5, 64)), expected)
    assert len(caplog.records) == 1
    if harm != "folder":
        assert file.read_bytes() == good
        assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_other_weights_and_other_formats_have_other_files(
    folders: dict[str, Path], cache: Path, tmp_path: Path
) -> None:
    config = tiny_config("llama")
    wanted: list[tuple[Path, torch.dtype, Scheme]] = [
        (folders["llama"], torch.bfloat16, "int8"),
        (folders["llama"], torch.float32, "int8"),
        (folders["llama"], torch.bfloat16, "int4"),
    ]
    for folder, dtype, scheme in wanted:
        open_checkpoint(str(folder)).load_span(0, 1, dtype=dtype, quant=scheme)
    other = save(LlamaConfig(**{**config.to_dict(), "rms_norm_eps": 1e-3}), tmp_path / "other")
    open_checkpoint(str(other)).load_span(0, 1, quant="int8")
    assert len(list(cache.glob("*/block-0000.safetensors"))) == 4


def test_a_damaged_checkpoint_is_still_said_to_be_one(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llama"], tmp_path / "broken")
    checkpoint = open_checkpoint(str(folder))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointBroken):
        checkpoint.load_span(0, 1, quant="int8")


def test_a_model_without_linear_layers_is_refused_in_a_sentence(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save(tiny_config("gpt2"), tmp_path / "gpt2")))
    with pytest.raises(BadInput, match="gpt2 have no linear layers"):
        checkpoint.load_span(0, 2, quant="int8")


def test_routers_norms_and_experts_stay_as_they_are(folders: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(str(folders["mixtral"]))
    quant, exact = checkpoint.load_span(0, 1, quant="int8"), checkpoint.load_span(0, 1, dtype=torch.bfloat16)
    kept = dict(quant.model.named_parameters())
    names = {path.rpartition(".")[2] for path in quantised_layers(quant.model)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert any("gate_up_proj" in name for name in kept)
    originals = dict(exact.model.named_parameters())
    assert all(torch.equal(weight, originals[name]) for name, weight in kept.items())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_blocks_will_take_is_foretold_to_the_byte(folders: dict[str, Path], family: str, scheme: Scheme) -> None:
    checkpoint = open_checkpoint(str(folders[family]))
    found = footprint(checkpoint.config, torch.bfloat16, step_tokens=16, session_tokens=48, quant=scheme)
    exact = footprint(checkpoint.config, torch.bfloat16, step_tokens=16, session_tokens=48)
    assert found.weights == tuple(
        checkpoint.load_span(block, block + 1, quant=scheme).weight_bytes for block in range(BLOCKS)
    )
    assert found.stored == exact.stored == exact.weights
    assert sum(found.weights) < sum(exact.weights)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral"])
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(1, 90) | st.just(1), min_size=1, max_size=4), seed=st.integers(0, 2**20))
def test_deterministic_passes_give_a_session_the_same_bits_in_any_company(
    spans: dict[tuple[str, Scheme], Span], family: str, scheme: Scheme, lengths: list[int], seed: int
) -> None:
    span = spans[family, scheme]
    given_out = [noise(length, span.hidden_size, seed + number) for number, length in enumerate(lengths)]
    pieces = [Piece(span.open_session(), hidden, 0) for hidden in given_out]
    for out, hidden in zip(span.run(pieces, deterministic=True), given_out, strict=True):
        assert torch.equal(out, through(span, hidden))


@pytest.fixture(scope="module")
def spans(folders: dict[str, Path]) -> dict[tuple[str, Scheme], Span]:
    return {
        (family, scheme): open_checkpoint(str(folder)).load_span(0, BLOCKS, quant=scheme)
        for family, folder in folders.items()
        for scheme in SCHEMES
    }


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_long_step_is_as_good_as_many_short_ones(
    spans: dict[tuple[str, Scheme], Span], scheme: Scheme, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether this CPU has a kernel of torch's for it, or not."""
    for module in (quantised, linears, runs):
        monkeypatch.setattr(module, "torch_is_quick", lambda _: quick)
    span = spans["llama", scheme]
    hidden = noise(5 * SHORT_STEP, span.hidden_size)
    whole = span.run([Piece(span.open_session(), hidden, 0)])[0]
    short = span.run([Piece(span.open_session(), hidden, 0, (SHORT_STEP,) * 5)])[0]
    assert gap(whole, short) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rows", [64, 96, 100])
def test_a_layer_multiplies_by_its_weight(scheme: Scheme, dtype: torch.dtype, rows: int, bias: bool) -> None:
    torch.manual_seed(SEED)
    linear = nn.Linear(128, rows, bias=bias, dtype=dtype)
    layer = QuantisedLinear(linear, scheme)
    layer.fill(quantise(linear.weight.detach(), scheme), CPU)
    assert gap(layer.weight, linear.weight) < (0.01 if scheme == "int8" else 0.08)
    for tokens in (1, 5, SHORT_STEP + 1):
        given_in = noise(tokens, 128).to(dtype)
        added = linear.bias.float() if bias else None
        expected = nn.functional.linear(given_in.float(), layer.weight.float(), added)
        with torch.inference_mode():
            out = layer(given_in)
        assert out.dtype is dtype
        assert gap(out, expected) < TOLERANCE.get(dtype, 0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_reach_what_went_in(scheme: Scheme) -> None:
    torch.manual_seed(SEED)
    linear = nn.Linear(64, 64, dtype=torch.bfloat16)
    layer = QuantisedLinear(linear, scheme)
    layer.fill(quantise(linear.weight.detach(), scheme), CPU)
    given_in = noise(3, 64).bfloat16().requires_grad_()
    layer(given_in).sum().backward()
    assert given_in.grad is not None
    assert gap(given_in.grad, layer.weight.float().sum(0).expand(1, 3, -1)) < TOLERANCE[torch.bfloat16]


def test_nothing_is_compiled() -> None:
    """A user has no C++ compiler, perhaps, and no minute to wait."""
    code = (
        "import torch, torch.utils.cpp_extension\n"
        "torch.utils.cpp_extension._jit_compile = None\n"
        "from swarmnode.models.quantising import quantise\n"
        "print(quantise(torch.randn(64, 64), 'int4')['codes'].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "torch.Size([64, 32])", done.stderr


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_that_are_all_the_same_do_no_harm(scheme: Scheme) -> None:
    linear = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    layer = QuantisedLinear(linear, scheme)
    layer.fill(quantise(torch.zeros(64, 64, dtype=torch.bfloat16), scheme), CPU)
    assert torch.equal(layer(noise(2, 64).bfloat16()), torch.zeros(1, 2, 64, dtype=torch.bfloat16))
