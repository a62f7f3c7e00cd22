"""Compare a model in parts with the same model whole, bit for bit, over everything a session may do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from transformers import DynamicCache, PreTrainedModel

from swarmnode.errors import FamilyNotCertified, ReplayNeeded

from . import cut
from .ends import Ends
from .quirks import quirks_of
from .span import Span, SpanCache
from .tiny import VOCABULARY
from .tiny_checkpoint import SEED, TinyCheckpoint

__all__ = ["Findings", "compare", "require_consistent"]

PROMPT = (11,)
CHUNKS = (5, 4, 2, 1, 1, 1)
OTHER_CHUNKS = (3, 1, 1, 4, 1, 1)
"""Of the second session, which has two rows."""

SHORT_TRY, SHORT_KEPT = (3, 1, 1), (3,)
"""Within the tiny models' sliding window."""

LONG_KEPT = (5, 4)
"""Of `CHUNKS`: beyond the window."""

AFTER = (2, 1)
"""Other tokens that follow the kept ones."""

CACHE_TOLERANCE = 1e-3
"""How far, relative to the largest logit, stock decode may be from a pass at once: rounding, not forgetting."""

Logits = list[torch.Tensor]


@dataclass
class Findings:
    """Largest difference of any logit under each heading, and whether sessions could go back."""

    differences: dict[str, float] = field(default_factory=dict)
    truncatable: bool = True

    def note(self, heading: str, ours: Logits, theirs: Logits) -> None:
        """Compare chunk by chunk; another shape or a NaN counts as infinitely far."""
        for one, other in zip(ours, theirs, strict=True):
            gap = (one - other).abs().max().item() if one.shape == other.shape else math.inf
            gap = math.inf if math.isnan(gap) else gap
            self.differences[heading] = max(gap, self.differences.get(heading, 0.0))


@dataclass(frozen=True)
class _Story:
    """Tokens that come in chunks of these lengths, and the logits the whole model gives to each chunk."""

    ids: torch.Tensor
    lengths: tuple[int, ...]
    expected: Logits

    @property
    def chunks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Position and ids of each chunk."""
        return _chunks(self.ids, self.lengths)


def compare(checkpoint: TinyCheckpoint) -> Findings:
    """Cut a model in every way of `_chains` and compare. Raises SwarmnodeError when a part cannot be built."""
    whole = checkpoint.whole
    torch.manual_seed(SEED + 1)
    first, again = (torch.randint(3, VOCABULARY, (1, 20)) for _ in range(2))
    pair = torch.randint(3, VOCABULARY, (2, 20))
    prompt = _story(whole, first, PROMPT)
    chunks = _story(whole, first, CHUNKS)
    other = _story(whole, pair, OTHER_CHUNKS)
    short = _story(whole, _spliced(first, again, SHORT_KEPT), SHORT_KEPT + AFTER)
    long = _story(whole, _spliced(first, again, LONG_KEPT), LONG_KEPT + AFTER)
    findings = Findings()
    for chain in _chains(checkpoint):
        findings.note("a prompt at once", list(chain.play(prompt)), prompt.expected)
        mine, theirs = chain.open(), chain.open()
        steps = list(zip(chain.play(chunks, mine), chain.play(other, theirs), strict=True))
        findings.note("chunks and decode", [one for one, _ in steps], chunks.expected)
        findings.note("a second session in turn", [two for _, two in steps], other.expected)
        chain.go_back(mine, long, LONG_KEPT, findings)
        caches = chain.open()
        list(chain.play(_Story(first, SHORT_TRY, []), caches))
        findings.truncatable &= chain.go_back(caches, short, SHORT_KEPT, findings)
    return findings


def require_consistent(whole: PreTrainedModel) -> None:
    """Refuse a stock model whose cache gives other logits than a pass at once: its decode cannot be trusted.

    Raises:
        FamilyNotCertified: they differ by more than rounding.
    """
    torch.manual_seed(SEED + 1)
    ids = torch.randint(3, VOCABULARY, (1, sum(CHUNKS)))
    chunked, at_once = torch.cat(_run_whole(whole, ids, CHUNKS), dim=1), _run_whole(whole, ids, (sum(CHUNKS),))[0]
    gap = ((chunked - at_once).abs().max() / at_once.abs().max()).item()
    if not gap < CACHE_TOLERANCE:
        raise FamilyNotCertified(
            f"Its stock code decodes from the cache otherwise than at once (by {gap:.0e} of the logits)."
        )


class _Chain:
    """A model in parts: the ends and some spans after each other."""

    def __init__(self, ends: Ends, spans: Sequence[Span], single_steps: bool) -> None:
        self._ends = ends
        self._spans = spans
        self._single_steps = single_steps

    def open(self) -> list[SpanCache]:
        """A session: one cache for each span."""
        return [span.open_cache() for span in self._spans]

    def step(self, caches: list[SpanCache], ids: torch.Tensor, position: int) -> torch.Tensor:
        """Logits of all positions. Raises ReplayNeeded."""
        hidden = self._ends.embed(ids, position)
        for span, cache in zip(self._spans, caches, strict=True):
            hidden = span.step(cache, hidden, position)
        tokens = 1 if self._single_steps and position else hidden.shape[1]
        logits = [self._ends.logits(piece, last_only=False) for piece in torch.split(hidden, tokens, dim=1)]
        return torch.cat(logits, dim=1)

    def play(self, story: _Story, caches: list[SpanCache] | None = None) -> Iterator[torch.Tensor]:
        """Logits of the chunks of a new session, or of a session sent again from the start."""
        caches = self.open() if caches is None else caches
        for position, ids in story.chunks:
            yield self.step(caches, ids, position)

    def go_back(self, caches: list[SpanCache], story: _Story, kept: tuple[int, ...], findings: Findings) -> bool:
        """Truncate to the end of `kept` and go on with the story, or send it all again where that is refused."""
        rest = [(position, ids) for position, ids in story.chunks if position >= sum(kept)]
        try:
            ours = [self.step(caches, ids, position) for position, ids in rest]
        except ReplayNeeded:
            findings.note("a replay", list(self.play(story, caches)), story.expected)
            return False
        findings.note("going back", ours, story.expected[len(kept) :])
        return True


def _chains(checkpoint: TinyCheckpoint) -> Iterator[_Chain]:
    """Single blocks, each loaded by itself; all in one; and in two at every boundary, as parts of the one."""
    ends = checkpoint.ends()
    blocks = ends.num_blocks
    single_steps = quirks_of(checkpoint.whole.config.model_type).single_steps
    yield _Chain(ends, [checkpoint.span(index, index + 1) for index in range(blocks)], single_steps)
    together = checkpoint.span(0, blocks)
    yield _Chain(ends, [together], single_steps)
    for at in range(1, blocks):
        yield _Chain(ends, [together.part(0, at), together.part(at, blocks)], single_steps)


def _story(whole: PreTrainedModel, ids: torch.Tensor, lengths: tuple[int, ...]) -> _Story:
    return _Story(ids, lengths, _run_whole(whole, ids, lengths))


def _run_whole(whole: PreTrainedModel, ids: torch.Tensor, lengths: Sequence[int]) -> Logits:
    """Logits of the consecutive chunks by the stock model and its own cache, in single steps if the family needs it."""
    cache = DynamicCache(config=cut.text_config(whole.config))
    single_steps = quirks_of(whole.config.model_type).single_steps
    chunks = []
    for start, chunk in _chunks(ids, lengths):
        pieces: list[torch.Tensor] = []
        for piece in torch.split(chunk, 1 if single_steps and start else chunk.shape[1], dim=1):
            about = cut.step_arguments(whole, cache, start + len(pieces), piece)
            with torch.inference_mode():
                pieces.append(whole(input_ids=piece, **about).logits.float())
        chunks.append(torch.cat(pieces, dim=1))
    return chunks


def _chunks(ids: torch.Tensor, lengths: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
    places = [sum(lengths[:count]) for count in range(len(lengths) + 1)]
    for start, stop in pairwise(places):
        yield start, ids[:, start:stop]


def _spliced(ids: torch.Tensor, others: torch.Tensor, kept: Sequence[int]) -> torch.Tensor:
    return torch.cat([ids[:, : sum(kept)], others], dim=1)
