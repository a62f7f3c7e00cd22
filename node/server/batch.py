"""One batch on the torch thread: bodies decoded, steps run together, results encoded. Knows no stream, no schedule."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from typing_extensions import Buffer

from swarmnode.errors import OutOfMemory, SwarmnodeError
from swarmnode.models.span import Piece, RaggedCache, Span, SpanCache
from swarmnode.node.tensors import tensor_from_bytes, tensor_to_bytes
from swarmnode.protocols.messages import Step, TensorHeader

from .prefix import Chain, cut
from .prefix_rows import Begun, Prefixes
from .schedule import Chunk

__all__ = ["Computed", "Held", "Job", "run_batch"]


@dataclass(slots=True, eq=False)
class Held:
    """What a session holds here: a part of the span, and its state on it.

    Attributes:
        chain: the blocks it begins with, where they may be shared with sessions that begin alike.
    """

    part: Span
    cache: SpanCache | RaggedCache
    chain: Chain | None = None


@dataclass(frozen=True, slots=True)
class Computed:
    """A step's result, ready to be sent; and how long it waited for its turn and was computed.

    Attributes:
        known_tokens: of the step, that were not computed because another session had begun alike.
    """

    tensor: TensorHeader
    body: Buffer
    queue_us: int
    compute_us: int
    known_tokens: int = 0


@dataclass(slots=True, eq=False)
class Job:
    """A step to be run.

    Attributes:
        step, body: with the hidden states `[rows, tokens, hidden_size]` as they came.
        keep: how many of the last tokens to return; None for all.
        dtype: of the result.
        codec: chooses the result's codec by its dtype and shape; called on the torch thread.
        done: is given what came of it, on the event loop.
    """

    held: Held
    step: Step
    body: Buffer
    keep: int | None
    dtype: str
    codec: Callable[[TensorHeader], int]
    done: Callable[[Computed | SwarmnodeError], None]
    asked: float = field(default_factory=time.perf_counter)
    computed_seconds: float = 0.0
    known_tokens: int = 0
    hidden: torch.Tensor | None = None
    kept: list[torch.Tensor] = field(default_factory=list)

    def piece(self, chunk: Chunk[Job]) -> Piece:
        """What a batch carries of the step. Raises `ProtocolViolation` for a body that cannot be decoded."""
        if self.hidden is None:
            self.hidden = tensor_from_bytes(self.step.tensor, self.body)
            self.body = b""
        hidden = self.hidden[:, chunk.first : chunk.first + chunk.tokens]
        return Piece(self.held.cache, hidden, chunk.position, self._segments(chunk.position, chunk.segments))

    @property
    def first_kept(self) -> int:
        """The first of the step's tokens of which the result is to be returned."""
        return 0 if self.keep is None else self.step.tensor.tokens - self.keep

    def has_blocks(self, segments: tuple[int, ...]) -> bool:
        """Whether whole blocks are among its step's segments: all of the step then gets the bits of shared passes."""
        chain = self.held.chain
        if chain is None or self.step.tensor.tokens < chain.block_tokens:
            return False
        return chain.block_tokens in self._segments(self.step.position, segments)

    def _segments(self, position: int, segments: tuple[int, ...]) -> tuple[int, ...]:
        chain = self.held.chain
        return segments if chain is None else cut(position, segments, chain.block_tokens)

    def take(self, chunk: Chunk[Job], hidden: torch.Tensor, begun: float) -> Computed | None:
        """Note what a batch that began then made of its chunk's last tokens; the whole result with the last chunk."""
        first = chunk.first + chunk.tokens - hidden.shape[1]
        self.kept.append(hidden[:, max(0, self.first_kept - first) :])
        if not chunk.last:
            self.computed_seconds += time.perf_counter() - begun
            return None
        whole = self.kept[0] if len(self.kept) == 1 else torch.cat(self.kept, dim=1)
        rows, kept, width = whole.shape
        tensor, body = tensor_to_bytes(whole, self.dtype, self.codec(TensorHeader(self.dtype, (rows, kept, width))))
        now = time.perf_counter()
        computed = self.computed_seconds + now - begun
        queued = now - self.asked - computed
        return Computed(tensor, body, _microseconds(queued), _microseconds(computed), self.known_tokens)


def run_batch(
    chunks: Sequence[Chunk[Job]],
    *,
    deterministic: bool,
    prefixes: Prefixes,
    between: Callable[[], object] | None = None,
) -> list[Computed | SwarmnodeError | None]:
    """Run a batch; for each chunk its step's result, why it failed, or None when the step is not through yet.

    Sessions on one part of the span share a pass. What is wrong with one of them is no other's loss.

    Args:
        between: called before each block; what it takes does not count as computing.
    """
    began = time.perf_counter()

    def pause() -> None:
        nonlocal began
        assert between is not None
        stopped = time.perf_counter()
        between()
        began += time.perf_counter() - stopped

    prefixes.fit()
    results: list[Computed | SwarmnodeError | None] = [None] * len(chunks)
    begun: dict[int, Begun] = {}
    for index, chunk in enumerate(chunks):
        try:
            begun[index] = _begin(chunk, prefixes)
        except SwarmnodeError as error:
            results[index] = error
    passes: dict[int, list[tuple[int, Piece]]] = {}
    computed: dict[int, torch.Tensor | SwarmnodeError | None] = dict.fromkeys(begun)
    for index, each in begun.items():
        if each.rest is not None:
            passes.setdefault(id(chunks[index].step.work.held.part), []).append((index, each.rest))
    for members in passes.values():
        steps = [chunks[index].step for index, _ in members]
        exactly = deterministic or any(step.work.has_blocks(step.segments) for step in steps)
        stop = None if between is None else pause
        outs = _run(steps[0].work.held.part, [piece for _, piece in members], deterministic=exactly, between=stop)
        computed |= {index: out for (index, _), out in zip(members, outs, strict=True)}
    for index, out in computed.items():
        chunk = chunks[index]
        if isinstance(out, SwarmnodeError):
            results[index] = out
            continue
        results[index] = chunk.step.work.take(chunk, _end(chunk, begun[index], out, prefixes), began)
    return results


def _begin(chunk: Chunk[Job], prefixes: Prefixes) -> Begun:
    """Have the session hold what is known of a chunk. Raises what is wrong with it."""
    job = chunk.step.work
    piece = job.piece(chunk)
    job.held.part.check(piece)
    first_wanted = max(0, job.first_kept - chunk.first)
    if job.held.chain is None:
        return Begun(piece, piece, first_wanted)
    try:
        begun = prefixes.begin(job.held.chain, piece, first_wanted)
    except torch.OutOfMemoryError:
        raise _no_room(chunk.tokens) from None
    job.known_tokens += begun.known_tokens
    return begun


def _end(chunk: Chunk[Job], begun: Begun, computed: torch.Tensor | None, prefixes: Prefixes) -> torch.Tensor:
    """What came of a chunk's last tokens, after what is worth it was kept for others."""
    chain = chunk.step.work.held.chain
    if chain is not None:
        return prefixes.end(chain, begun, computed)
    assert computed is not None
    return computed


def _run(
    part: Span, pieces: list[Piece], *, deterministic: bool, between: Callable[[], object] | None
) -> Sequence[torch.Tensor | SwarmnodeError]:
    """One pass; when the device has no room for it, one for each piece."""
    try:
        return part.run(pieces, deterministic=deterministic, between=between)
    except torch.OutOfMemoryError:
        if len(pieces) > 1:
            return [_run(part, [piece], deterministic=deterministic, between=between)[0] for piece in pieces]
    return [_no_room(pieces[0].hidden.shape[1])]


def _no_room(tokens: int) -> OutOfMemory:
    return OutOfMemory(f"The device has no room for {tokens} tokens more.", hint="Try later, or another server.")


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
