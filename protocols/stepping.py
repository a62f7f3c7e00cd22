"""The messages that carry hidden states: step and output. The states themselves are the frame's body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from . import limits
from .tensors import TensorHeader, read_tensor
from .wire import Fields

__all__ = ["HopTrace", "Output", "Step"]


@dataclass(frozen=True, slots=True)
class HopTrace:
    """What one hop says it spent on a step; for people and for routing, never for correctness."""

    start: int
    end: int
    queue_us: int
    compute_us: int


@dataclass(frozen=True, slots=True)
class Step:
    """Hidden states to run, from the client or from the hop before.

    Attributes:
        step: numbered from 0 by the client, the same number at every hop.
        position: of the first token; behind what the cache holds it truncates the cache first.
        keep: how many of the last tokens the last hop sends back; 0 for an acknowledgement without any.
        tensor: what the body is.
        trace: one entry for each hop passed so far.
        segments: tokens of each part that attention sees at once, in order; none where the step is one. What came in
            steps of these lengths has the same bits when it is sent again so.
    """

    type: ClassVar[str] = "step"
    step: int
    position: int
    keep: int
    tensor: TensorHeader
    trace: tuple[HopTrace, ...] = ()
    segments: tuple[int, ...] = ()

    def to_map(self) -> dict[str, object]:
        segments = {"segments": list(self.segments)} if self.segments else {}
        return {
            "step": self.step,
            "position": self.position,
            "keep": self.keep,
            "tensor": self.tensor.to_map(),
            "trace": _trace_to_lists(self.trace),
            **segments,
        }

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Step:
        tensor = read_tensor(fields, body_bytes, least_tokens=1)
        return Step(
            step=fields.integer("step", limits.MAX_STEP_NUMBER),
            position=fields.integer("position", limits.MAX_CONTEXT_TOKENS - tensor.tokens),
            keep=fields.integer("keep", tensor.tokens),
            tensor=tensor,
            trace=_read_trace(fields),
            segments=_read_segments(fields, tensor.tokens),
        )


@dataclass(frozen=True, slots=True)
class Output:
    """server → client: what came of a step.

    Attributes:
        next_block: the block that wants the tensor next. The number of blocks of the model when the step is through;
            less when the sender could not reach its successor, so that the client sends the tensor on by itself.
    """

    type: ClassVar[str] = "output"
    step: int
    position: int
    next_block: int
    tensor: TensorHeader
    trace: tuple[HopTrace, ...] = ()

    def to_map(self) -> dict[str, object]:
        return {
            "step": self.step,
            "position": self.position,
            "next_block": self.next_block,
            "tensor": self.tensor.to_map(),
            "trace": _trace_to_lists(self.trace),
        }

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Output:
        tensor = read_tensor(fields, body_bytes, least_tokens=0)
        return Output(
            step=fields.integer("step", limits.MAX_STEP_NUMBER),
            position=fields.integer("position", limits.MAX_CONTEXT_TOKENS - tensor.tokens),
            next_block=fields.integer("next_block", limits.MAX_BLOCKS, least=1),
            tensor=tensor,
            trace=_read_trace(fields),
        )


def _read_segments(fields: Fields, tokens: int) -> tuple[int, ...]:
    if not fields.has("segments"):
        return ()
    items = fields.items("segments", limits.MAX_SEGMENTS)
    segments = tuple(item for item in items if type(item) is int and item >= 1)
    if len(segments) != len(items):
        raise fields.wrong("segments must hold integers of at least 1.")
    if sum(segments) != tokens:
        raise fields.wrong(f"segments has {sum(segments)} tokens, the step {tokens}.")
    return segments


def _trace_to_lists(trace: tuple[HopTrace, ...]) -> list[tuple[int, int, int, int]]:
    return [(hop.start, hop.end, hop.queue_us, hop.compute_us) for hop in trace]


def _read_trace(fields: Fields) -> tuple[HopTrace, ...]:
    hops = []
    for item in fields.items("trace", limits.MAX_HOPS):
        if type(item) is not list or not 4 <= len(item) <= limits.MAX_HOPS:
            raise fields.wrong("trace must hold lists of at least four integers.")
        if not all(type(number) is int and 0 <= number <= limits.MAX_TRACE_MICROSECONDS for number in item[:4]):
            raise fields.wrong("trace holds a number that is out of bounds.")
        start, end, queue_us, compute_us = item[:4]
        if not start < end <= limits.MAX_BLOCKS:
            raise fields.wrong(f"trace holds the span {start}:{end}, which is none.")
        hops.append(HopTrace(start, end, queue_us, compute_us))
    return tuple(hops)
