"""Adapters in parts of a model: what PEFT makes of the whole, however it is cut and whoever shares the pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from support.tiny_adapter import peft_model, save_adapter
from swarmnode.models.adapters import open_adapter
from swarmnode.models.checkpoint import Checkpoint
from swarmnode.models.devices import Placement
from swarmnode.models.ends import Ends
from swarmnode.models.mix import TILE_ROWS, Mix, Share, running
from swarmnode.models.quantised import QuantisedLinear, Scheme
from swarmnode.models.source import FolderFiles
from swarmnode.models.span import Piece, Span
from swarmnode.models.tiny import VOCABULARY, tiny_config
from swarmnode.models.tiny_checkpoint import TinyCheckpoint, tiny_checkpoint

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FAMILIES = {
    "llama": (*ATTENTION, "gate_proj", "up_proj", "down_proj"),
    "qwen3": (*ATTENTION, "down_proj"),
    "gemma2": (*ATTENTION, "up_proj"),
    "mixtral": ATTENTION,
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "phi3": ("qkv_proj", "gate_up_proj"),
    "bloom": ("query_key_value", "dense_h_to_4h"),
    "mamba": ("in_proj", "x_proj"),
}
"""With experts, with weights on their side, with queries, keys and values in one, and without a shared pass."""

TOLERANCE = 1e-5
"""Relative to the largest logit: rounding, not another result."""

WIDTH = 64


def opened(tiny: TinyCheckpoint) -> Checkpoint:
    return Checkpoint(FolderFiles(tiny.folder, "tiny"))


def stock_logits(model: torch.nn.Module, ids: torch.Tensor, lengths: Sequence[int], family: str) -> torch.Tensor:
    with torch.inference_mode():
        if family == "mamba":
            return cast(torch.Tensor, model(input_ids=ids).logits)
        cache = DynamicCache()
        parts = [
            model(input_ids=part, use_cache=True, past_key_values=cache).logits
            for part in torch.split(ids, [*lengths], dim=1)
        ]
    return torch.cat(parts, dim=1)


def chained(ends: Ends, spans: Sequence[Span], ids: torch.Tensor, lengths: Sequence[int], key: str) -> torch.Tensor:
    caches = [span.open_session(key) for span in spans]
    position, parts = 0, []
    for part in torch.split(ids, [*lengths], dim=1):
        hidden = ends.embed(part, position)
        for span, cache in zip(spans, caches, strict=True):
            hidden = span.step(cache, hidden, position)
        parts.append(ends.logits(hidden, last_only=False))
        position += part.shape[1]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_model_with_adapters_is_what_peft_makes_of_the_whole(family: str, tmp_path: Path) -> None:
    ids = torch.randint(3, VOCABULARY, (1, 14), generator=torch.Generator().manual_seed(5))
    lengths = (7, 1, 4, 1, 1)
    with tiny_checkpoint(tiny_config(family)) as tiny:
        checkpoint, ends = opened(tiny), tiny.ends()
        plain = save_adapter(tiny.whole, tmp_path / "plain", FAMILIES[family], r=4)
        rich = save_adapter(
            tiny.whole,
            tmp_path / "rich",
            FAMILIES[family][:2],
            seed=2,
            r=3,
            lora_alpha=5,
            use_rslora=True,
            lora_dropout=0.1,
            rank_pattern={FAMILIES[family][0]: 2},
            alpha_pattern={f".*\\.1\\..*{FAMILIES[family][0]}": 7},
        )
        adapters = [open_adapter(folder.name, str(folder), tiny.config) for folder in (plain, rich)]
        together = checkpoint.load_span(0, 4, adapters=adapters)
        chains = [
            [together],
            [checkpoint.load_span(block, block + 1, adapters=adapters) for block in range(4)],
            *([together.part(0, at), together.part(at, 4)] for at in range(1, 4)),
        ]
        without = stock_logits(tiny.whole, ids, lengths, family)
        for folder, adapter in zip((plain, rich), adapters, strict=True):
            expected = stock_logits(peft_model(tiny.whole, folder), ids, lengths, family)
            largest = expected.abs().max()
            assert (without - expected).abs().max() > 100 * TOLERANCE * largest, "the adapter is not to be overlooked"
            for spans in chains:
                ours = chained(ends, spans, ids, lengths, adapter.key)
                assert (ours - expected).abs().max() <= TOLERANCE * largest


KEYS = ("none", "poet", "sql", "odd")


@contextmanager
def spans_with_and_without(family: str) -> Iterator[dict[torch.dtype, tuple[Span, Span, dict[str, str | None]]]]:
    """Spans with three adapters, the same without any, and the adapters' keys by name."""
    targets = FAMILIES[family]
    with tiny_checkpoint(tiny_config(family)) as tiny, TemporaryDirectory() as folder:
        made = {"poet": (8, targets), "sql": (2, targets[1:]), "odd": (5, targets[:1])}
        adapters = [
            open_adapter(
                name, str(save_adapter(tiny.whole, Path(folder) / name, modules, seed=rank, r=rank)), tiny.config
            )
            for name, (rank, modules) in made.items()
        ]
        checkpoint = opened(tiny)
        keys: dict[str, str | None] = {"none": None} | {each.name: each.key for each in adapters}
        yield {
            dtype: (
                checkpoint.load_span(0, 4, dtype=dtype, adapters=adapters),
                checkpoint.load_span(0, 4, dtype=dtype),
                keys,
            )
            for dtype in (torch.float32, torch.bfloat16)
        }


@pytest.fixture(scope="module", params=["llama", "mixtral", "gpt2"])
def spans(request: pytest.FixtureRequest) -> Iterator[dict[torch.dtype, tuple[Span, Span, dict[str, str | None]]]]:
    with spans_with_and_without(request.param) as made:
        yield made


class Session:
    """One session twice: in company, and alone; where it has no adapter, alone on blocks that have none either."""

    def __init__(self, span: Span, plain: Span, key: str | None, rows: int) -> None:
        self.lone_span = plain if key is None else span
        self.company, self.alone = span.open_session(key), self.lone_span.open_session(key)
        self.rows = rows
        self.said: list[tuple[torch.Tensor, torch.Tensor]] = []

    def next(self, tokens: int, generator: torch.Generator) -> tuple[Piece, torch.Tensor]:
        hidden = torch.randn(self.rows, tokens, WIDTH, generator=generator)
        at = self.alone.position
        out = self.lone_span.run([Piece(self.alone, hidden, at)], deterministic=True)[0]
        self.said.append((hidden, out))
        return Piece(self.company, hidden, at), out


turn = st.integers(1, 9) | st.just(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    who=st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([1, 1, 1, 2])), min_size=1, max_size=6),
    passes=st.lists(st.dictionaries(st.integers(0, 5), turn, min_size=1), min_size=1, max_size=5),
    seed=st.integers(0, 2**20),
)
def test_a_session_gets_the_same_bits_whatever_adapters_others_use(
    spans: dict[torch.dtype, tuple[Span, Span, dict[str, str | None]]],
    dtype: torch.dtype,
    who: list[tuple[str, int]],
    passes: list[dict[int, int]],
    seed: int,
) -> None:
    span, plain, keys = spans[dtype]
    generator = torch.Generator().manual_seed(seed)
    sessions = [Session(span, plain, keys[name], rows) for name, rows in who]
    for asked in passes:
        present = {number % len(sessions): tokens for number, tokens in asked.items()}
        given_out = [sessions[number].next(tokens, generator) for number, tokens in present.items()]
        outs = span.run([piece for piece, _ in given_out], deterministic=True)
        for out, (_, expected) in zip(outs, given_out, strict=True):
            assert torch.equal(out, expected)
    started = [each for each in sessions if each.said]
    replay = [
        Piece(
            span.open_session(each.company.adapter),
            torch.cat([hidden for hidden, _ in each.said], 1),
            0,
            tuple(hidden.shape[1] for hidden, _ in each.said),
        )
        for each in started
    ]
    for each, out in zip(started, span.run(replay, deterministic=True), strict=True):
        assert torch.equal(out, torch.cat([out for _, out in each.said], 1))


def test_without_an_adapter_nothing_changes_for_a_lone_session_either(
    spans: dict[torch.dtype, tuple[Span, Span, dict[str, str | None]]],
) -> None:
    for span, plain, keys in spans.values():
        ours, theirs = span.open_session(), plain.open_session()
        adapted = span.open_session(keys["poet"])
        for tokens in (7, 1, 1, 5, 1):
            hidden = torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(tokens))
            expected = plain.step(theirs, hidden, theirs.position)
            assert torch.equal(span.step(ours, hidden, ours.position), expected)
            assert not torch.equal(span.step(adapted, hidden, adapted.position), expected)
        with pytest.raises(ValueError, match="no adapter"):
            plain.open_session(keys["poet"])


def test_gradients_pass_through_adapted_layers_and_stop_there(
    spans: dict[torch.dtype, tuple[Span, Span, dict[str, str | None]]],
) -> None:
    span, _, keys = spans[torch.float32]
    key = keys["poet"]
    assert key is not None
    layer = next(module for module in span.model.modules() if key in getattr(module, "lora_A", ()))
    x = torch.randn(1, 4, layer.in_features, requires_grad=True)
    with running(Mix((Share(key, 1, 1, 2, ((0, 2),)),), 4)):
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    weight = layer.lora_B[key].weight @ layer.lora_A[key].weight
    added = gradient[0, 1:3] - gradient[0, 0]
    assert torch.allclose(added, layer.scaling[key] * weight.sum(0).expand(2, -1), atol=1e-4)
    assert torch.equal(gradient[0, 0], gradient[0, 3])


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_adapters_stand_on_quantised_layers_too(
    scheme: Scheme, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tiny_checkpoint(tiny_config("llama")) as tiny:
        folder = save_adapter(tiny.whole, tmp_path / "poet", FAMILIES["llama"], r=4)
        adapter, checkpoint = open_adapter("poet", str(folder), tiny.config), opened(tiny)
        span = checkpoint.load_span(0, 4, quant=scheme, dtype=torch.float32, adapters=[adapter])
        plain = checkpoint.load_span(0, 4, quant=scheme, dtype=torch.float32)
    hidden = torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = plain.step(plain.open_session(), hidden, 0)
    assert torch.equal(span.step(span.open_session(), hidden, 0), expected)
    # PEFT's sum, in the weights themselves: what the adapter adds is the same on whatever it stands.
    layers = [module for module in plain.model.modules() if isinstance(module, QuantisedLinear)]
    assert layers
    merged = span.step(span.open_session(adapter.key), hidden, 0)
    for name, module in span.model.named_modules():
        if adapter.key in getattr(module, "lora_A", ()):
            added = module.lora_B[adapter.key].weight @ module.lora_A[adapter.key].weight * module.scaling[adapter.key]
            linear = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight = torch.nn.Parameter(module.base_layer.weight + added, requires_grad=False)
            plain.model.set_submodule(name, linear)
    with torch.inference_mode():
        gap = (plain.step(plain.open_session(), hidden, 0) - merged).abs().max()
    assert gap <= 10 * TOLERANCE * merged.abs().max() < 0.01 * (merged - expected).abs().max()


def test_adapters_go_where_their_blocks_go(tmp_path: Path) -> None:
    with tiny_checkpoint(tiny_config("llama")) as tiny:
        folder = save_adapter(tiny.whole, tmp_path / "poet", FAMILIES["llama"], r=4)
        adapter, checkpoint = open_adapter("poet", str(folder), tiny.config), opened(tiny)
        plain, here = checkpoint.load_span(0, 4), checkpoint.load_span(0, 4, adapters=[adapter])
        brought = checkpoint.load_span(
            0, 4, adapters=[adapter], device=Placement((torch.device("cpu"),) * 4, frozenset({1, 2}))
        )
    hidden = torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(1))
    for key in (None, adapter.key):
        expected = here.step(here.open_session(key), hidden, 0)
        assert torch.equal(brought.step(brought.open_session(key), hidden, 0), expected)
    assert here.weight_bytes - plain.weight_bytes == sum(adapter.block_bytes(4, torch.float32))


def test_more_tokens_than_a_tile_has_rows_get_the_same_bits_too(
    spans: dict[torch.dtype, tuple[Span, Span, dict[str, str | None]]],
) -> None:
    generator = torch.Generator().manual_seed(3)
    for span, plain, keys in spans.values():
        sessions = [Session(span, plain, keys[KEYS[number % 2]], 1) for number in range(2 * TILE_ROWS + 6)]
        for tokens in (3, 1, 1):
            given_out = [session.next(tokens, generator) for session in sessions]
            outs = span.run([piece for piece, _ in given_out], deterministic=True)
            assert all(torch.equal(out, expected) for out, (_, expected) in zip(outs, given_out, strict=True))
