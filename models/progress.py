"""What is told while a model is fetched and loaded. Knows no torch and prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Progress", "ProgressEvent", "Stage", "Unit"]

Stage = Literal["download", "convert", "load"]
Unit = Literal["bytes", "blocks"]


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """How far one piece of work has come.

    Attributes:
        stage: `download` from a hub, `convert` from GGUF to safetensors, or `load` from disk into memory.
        what: the file or the part of the model, for people. Together with `stage` it names the piece of work.
        done: how much is done, never less than in the event before.
        total: how much there is, None while that is unknown. The last event has `done == total`.
        unit: what `done` and `total` count.
    """

    stage: Stage
    what: str
    done: int
    total: int | None
    unit: Unit


Progress = Callable[[ProgressEvent], None]
"""Called from whichever thread does the work, often many times a second: return quickly and never raise."""
