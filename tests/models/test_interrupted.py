"""A pass that stops between blocks for other sessions' passes: the bits of both are those that each has undisturbed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.tiny_adapter import save_adapter
from swarmnode.models.adapters import open_adapter
from swarmnode.models.checkpoint import Checkpoint
from swarmnode.models.quantised import Scheme
from swarmnode.models.source import FolderFiles
from swarmnode.models.span import Piece, RaggedCache, Span, SpanCache
from swarmnode.models.tiny import tiny_config
from swarmnode.models.tiny_checkpoint import tiny_checkpoint

WIDTH = 64
BLOCKS = 4

FAMILIES = ("llama", "gpt_oss", "gemma3_text", "mixtral", "mamba", "granitemoehybrid", "falcon")
"""Plain; windows, sinks, experts; kinds of blocks; experts; no attention at all; some of both; another head."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def hidden(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


class Talk:
    """A session that takes a prompt and then token after token."""

    def __init__(self, span: Span, seed: int, adapter: str | None = None) -> None:
        self.span = span
        self.seed = seed
        self.cache: SpanCache | RaggedCache = span.open_session(adapter)
        self.outs = [span.run([Piece(self.cache, hidden(5, seed), 0)], deterministic=True)[0]]

    def piece(self) -> Piece:
        return Piece(self.cache, hidden(1, self.seed + len(self.outs)), self.cache.position)


def decode(talks: list[Talk], *, deterministic: bool) -> None:
    outs = talks[0].span.run([talk.piece() for talk in talks], deterministic=deterministic)
    for talk, out in zip(talks, outs, strict=True):
        talk.outs.append(out)


def story(
    span: Span, part: Span, *, afterwards: int | None = None, adapter: str | None = None
) -> tuple[list[torch.Tensor], int]:
    """Two prompts in one pass, then one alone. Before each of their blocks others take a token, or after it all.

    Args:
        afterwards: how many tokens the others take, if none in between.
        adapter: used by one of the prompts, and by one of the others.

    Returns:
        What all sessions get, and how many tokens the others took.
    """
    together, lone, elsewhere = [Talk(span, 10, adapter), Talk(span, 20)], Talk(span, 30), Talk(part, 40)
    taken = 0

    def others() -> None:
        nonlocal taken
        taken += 1
        decode(together, deterministic=True)
        decode([lone], deterministic=False)
        decode([elsewhere], deterministic=False)

    between = others if afterwards is None else None
    prompted = [span.open_session(adapter), span.open_session()]
    prompts = [Piece(cache, hidden(9, seed), 0) for seed, cache in enumerate(prompted)]
    outs = span.run(prompts, deterministic=True, between=between)
    outs += span.run([Piece(prompted[0], hidden(6, 3), 9)], between=between)
    for _ in range(afterwards or 0):
        others()
    return outs + [out for talk in (*together, lone, elsewhere) for out in talk.outs], taken


@pytest.mark.parametrize("family", FAMILIES)
def test_nobodys_bits_depend_on_a_pass_being_interrupted(family: str) -> None:
    with tiny_checkpoint(tiny_config(family)) as checkpoint:
        span = checkpoint.span(0, BLOCKS)
        part = span.part(2, 3)
        interrupted, taken = story(span, part)
        assert taken >= 2 * BLOCKS
        undisturbed, _ = story(span, part, afterwards=taken)
        for ours, theirs in zip(interrupted, undisturbed, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("scheme", [None, "int8"])
def test_adapters_and_quantised_weights_bear_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: Scheme | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tiny_checkpoint(tiny_config("llama")) as tiny:
        folder = save_adapter(tiny.whole, tmp_path / "poet", ("q_proj", "down_proj"))
        adapter = open_adapter("poet", str(folder), tiny.config)
        checkpoint = Checkpoint(FolderFiles(tiny.folder, "tiny"))
        span = checkpoint.load_span(0, BLOCKS, adapters=[adapter], quant=scheme)
        part = span.part(2, 3)
        interrupted, taken = story(span, part, adapter=adapter.key)
        undisturbed, _ = story(span, part, afterwards=taken, adapter=adapter.key)
        for ours, theirs in zip(interrupted, undisturbed, strict=True):
            assert torch.equal(ours, theirs)


def test_a_pass_that_breaks_inside_another_leaves_that_one_alone() -> None:
    with tiny_checkpoint(tiny_config("llama")) as checkpoint:
        span = checkpoint.span(0, BLOCKS)
        expected = span.run([Piece(span.open_session(), hidden(9, 1), 0)])[0]

        def broken() -> None:
            raise RuntimeError("in the middle")

        def other() -> None:
            with pytest.raises(RuntimeError, match="in the middle"):
                span.run([Piece(span.open_session(), hidden(3, 2), 0)], between=broken)

        out = span.run([Piece(span.open_session(), hidden(9, 1), 0)], between=other)[0]
        assert torch.equal(out, expected)
