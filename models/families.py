"""Which model families are certified, by the generated table beside this file. Knows neither torch nor transformers."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Protocol

from swarmnode.errors import FamilyNotCertified

from .quirks import refusal

__all__ = ["Certificate", "all_certificates", "certificate", "require_certified", "require_trainable"]

TABLE_NAME = "certified.json"


@dataclass(frozen=True)
class Certificate:
    """What cutting a tiny random model of a family at every boundary showed.

    Attributes:
        family: the config's `model_type`.
        certified: every comparison was bit-identical.
        reason: why not, in one sentence; empty when certified.
        max_difference: largest absolute difference of any logit (0.0 when certified), None when none could be compared.
        truncatable: a session may go back to an earlier position; otherwise it is sent again from the start.
        ragged: one pass may serve several sessions, and gives each the bits it has alone.
        why_not_ragged: why each session runs by itself, in one sentence; empty when ragged, or not certified.
        trains: gradients through its blocks in parts were those of autograd on the whole model.
        why_not_trains: why not, in one sentence; empty when it trains, or is not certified.
    """

    family: str
    certified: bool
    reason: str
    max_difference: float | None
    truncatable: bool
    ragged: bool
    why_not_ragged: str
    trains: bool
    why_not_trains: str


class _Config(Protocol):
    model_type: str

    def get_text_config(self, decoder: bool | None = None) -> object: ...


@functools.cache
def all_certificates() -> tuple[Certificate, ...]:
    """Every family of the installed transformers' causal language models, in alphabetical order."""
    table = json.loads((files("swarmnode.models") / TABLE_NAME).read_text(encoding="utf-8"))
    return tuple(Certificate(**entry) for entry in table["families"])


def certificate(family: str) -> Certificate:
    """The certificate of a model type; an unknown one is an uncertified one."""
    for entry in all_certificates():
        if entry.family == family:
            return entry
    reason = "It is no causal language model that this version knows."
    return Certificate(family, False, reason, None, False, False, "", False, "")


def require_certified(config: _Config) -> None:
    """Raise FamilyNotCertified, naming family and reason, unless a model of this config was shown to be cut exactly."""
    entry = certificate(config.model_type)
    reason = refusal(config) if entry.certified else entry.reason
    if reason:
        raise FamilyNotCertified(
            f"A model of the family {entry.family!r} cannot be served in parts: {reason}",
            hint="Run `swarmnode models` for the families that can.",
        )


def require_trainable(config: _Config) -> None:
    """Raise FamilyNotCertified, naming family and reason, unless gradients through blocks were shown to be right."""
    entry = certificate(config.model_type)
    if not entry.trains:
        raise FamilyNotCertified(
            f"A model of the family {entry.family!r} cannot be trained in parts: {entry.why_not_trains or entry.reason}"
        )
