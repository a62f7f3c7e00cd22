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

from .schedule import Chunk

__all__ = ["Computed", "Held", "Job", "run_batch"]


@dataclass(slots=True, eq=False)
class Held:
    """What a session holds here: a part of the span, and its state on it."""

    part: Span
    cache: SpanCache | RaggedCache


@dataclass(frozen=True, slots=True)
class Computed:
    """A step's result, ready to be sent; and how long it waited for its turn and was computed."""

    tensor: TensorHeader
    body: Buffer
    queue_us: int
    compute_us: int


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
    hidden: torch.Tensor | None = None
    kept: list[torch.Tensor] = field(default_factory=list)

    def piece(self, chunk: Chunk[Job]) -> Piece:
        """What a batch carries of the step. Raises `ProtocolViolation` for a body that cannot be decoded."""
        if self.hidden is None:
            self.hidden = tensor_from_bytes(self.step.tensor, self.body)
            self.body = b""
        hidden = self.hidden[:, chunk.first : chunk.first + chunk.tokens]
        return Piece(self.held.cache, hidden, chunk.position, chunk.segments)

    def take(self, chunk: Chunk[Job], hidden: torch.Tensor, begun: float) -> Computed | None:
        """Note what a batch that began then made of its chunk; the whole result with the last."""
        tokens = self.step.tensor.tokens
        first_kept = 0 if self.keep is None else tokens - self.keep
        self.kept.append(hidden[:, max(0, first_kept - chunk.first) :])
        if not chunk.last:
            self.computed_seconds += time.perf_counter() - begun
            return None
        whole = self.kept[0] if len(self.kept) == 1 else torch.cat(self.kept, dim=1)
        rows, kept, width = whole.shape
        tensor, body = tensor_to_bytes(whole, self.dtype, self.codec(TensorHeader(self.dtype, (rows, kept, width))))
        now = time.perf_counter()
        computed = self.computed_seconds + now - begun
        return Computed(tensor, body, _microseconds(now - self.asked - computed), _microseconds(computed))


def run_batch(
    chunks: Sequence[Chunk[Job]], *, deterministic: bool, between: Callable[[], object] | None = None
) -> list[Computed | SwarmnodeError | None]:
    """Run a batch; for each chunk its step's result, why it failed, or None when the step is not through yet.

    Sessions on one part of the span share a pass. What is wrong with one of them is no other's loss.

    Args:
        between: called before each block; what it takes does not count as computing.
    """
    begun = time.perf_counter()

    def pause() -> None:
        nonlocal begun
        assert between is not None
        stopped = time.perf_counter()
        between()
        begun += time.perf_counter() - stopped

    results: list[Computed | SwarmnodeError | None] = [None] * len(chunks)
    passes: dict[int, list[tuple[int, Piece]]] = {}
    for index, chunk in enumerate(chunks):
        job = chunk.step.work
        try:
            piece = job.piece(chunk)
            job.held.part.check(piece)
        except SwarmnodeError as error:
            results[index] = error
            continue
        passes.setdefault(id(job.held.part), []).append((index, piece))
    for members in passes.values():
        part = chunks[members[0][0]].step.work.held.part
        stop = None if between is None else pause
        outs = _run(part, [piece for _, piece in members], deterministic=deterministic, between=stop)
        for (index, _), out in zip(members, outs, strict=True):
            chunk = chunks[index]
            results[index] = out if isinstance(out, SwarmnodeError) else chunk.step.work.take(chunk, out, begun)
    return results


def _run(
    part: Span, pieces: list[Piece], *, deterministic: bool, between: Callable[[], object] | None
) -> Sequence[torch.Tensor | SwarmnodeError]:
    """One pass; when the device has no room for it, one for each piece."""
    try:
        return part.run(pieces, deterministic=deterministic, between=between)
    except torch.OutOfMemoryError:
        if len(pieces) > 1:
            return [_run(part, [piece], deterministic=deterministic, between=between)[0] for piece in pieces]
    tokens = pieces[0].hidden.shape[1]
    return [OutOfMemory(f"The device has no room for {tokens} tokens more.", hint="Try later, or another server.")]


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
