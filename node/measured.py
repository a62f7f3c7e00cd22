"""What this machine has measured of itself, kept for the next start: rates of spans, and the way to other peers.

One small file in the state folder, replaced whole. It only saves time: one that cannot be read, that another version
wrote or that makes no sense counts as empty, and one that cannot be written is done without.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from .identity import state_folder
from .links import Link

__all__ = ["Measured", "Network", "SpanKey", "SpanRates", "network_of"]

VERSION: Final = 2
MAX_SPANS: Final = 64
"""Spans that are remembered; of more, those that were not used for longest are forgotten."""
MAX_FILE_BYTES: Final = 64 * 1024
WORTH_WRITING: Final = 1.5
"""By so much a link must have become better or worse."""

_log = logging.getLogger("swarmnode.measured")


@dataclass(frozen=True, slots=True)
class SpanKey:
    """What the rate of a span depends on.

    Attributes:
        hardware: device, threads and torch, in words.
        model: the digest of config and weights, in hex.
        dtype: of weights and states.
        quant: in what the weights are kept, or "none".
        blocks: how many the span has.
    """

    hardware: str
    model: str
    dtype: str
    quant: str
    blocks: int


@dataclass(frozen=True, slots=True)
class SpanRates:
    """Tokens per second through a whole span, one session."""

    decode_tokens_per_second: float
    prefill_tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Network:
    """The way from here to other peers.

    Attributes:
        round_trip_seconds: of the median peer.
        bits_per_second: of the best link, as the transport measured it; None while it could not.
    """

    round_trip_seconds: float
    bits_per_second: float | None


class Measured:
    """The file, read when it is made.

    Args:
        path: None is `measured.json` in the state folder.

    Attributes:
        network: as it was found last.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = state_folder() / "measured.json" if path is None else path
        self._spans: dict[SpanKey, SpanRates] = {}
        self.network: Network | None = None
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            self._read()

    def rates(self, key: SpanKey) -> SpanRates | None:
        """What was measured of just this span."""
        return self._spans.get(key)

    def expected(self, key: SpanKey) -> SpanRates | None:
        """What this span should make: as measured, or as one of other length did, block for block."""
        alike = [other for other in self._spans if replace(other, blocks=key.blocks) == key]
        if not alike:
            return None
        nearest = min(alike, key=lambda other: abs(math.log(other.blocks / key.blocks)))
        found, longer = self._spans[nearest], nearest.blocks / key.blocks
        return SpanRates(found.decode_tokens_per_second * longer, found.prefill_tokens_per_second * longer)

    def keep(self, key: SpanKey, rates: SpanRates) -> None:
        """Remember a span's rates."""
        self._spans.pop(key, None)
        self._spans[key] = rates
        while len(self._spans) > MAX_SPANS:
            del self._spans[next(iter(self._spans))]
        self._write()

    def keep_network(self, network: Network) -> None:
        """Remember what links are like; what could not be told of them this time stays as it was."""
        before = self.network
        if before is not None and network.bits_per_second is None:
            network = replace(network, bits_per_second=before.bits_per_second)
        if before is None or not _alike(before, network):
            self.network = network
            self._write()

    def _read(self) -> None:
        with self._path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        told = json.loads(data) if len(data) <= MAX_FILE_BYTES else {}
        if told["version"] != VERSION:
            return
        spans = {
            SpanKey(**_strings_and_count(each["of"])): SpanRates(**_rates(each["rates"])) for each in told["spans"]
        }
        network = told["network"]
        if network is not None:
            rate = network["bits_per_second"]
            network = Network(_positive(network["round_trip_seconds"]), None if rate is None else _positive(rate))
        self._spans, self.network = spans, network

    def _write(self) -> None:
        spans = [{"of": asdict(key), "rates": asdict(rates)} for key, rates in self._spans.items()]
        told = {"version": VERSION, "spans": spans, "network": None if self.network is None else asdict(self.network)}
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft.write_text(json.dumps(told, indent=1), encoding="ascii")
            draft.replace(self._path)
        except OSError as error:
            _log.debug("%s could not be written: %s", self._path, error)
            with suppress(OSError):
                draft.unlink()


def network_of(links: Iterable[Link]) -> Network | None:
    """What links to other machines are like; None when there is none."""
    far = [link for link in links if not link.near and link.round_trip_seconds]
    if not far:
        return None
    best = max((link.bits_per_second or 0.0 for link in far), default=0.0)
    return Network(median(link.round_trip_seconds or 0.0 for link in far), best or None)


def _alike(one: Network, other: Network) -> bool:
    """Whether a difference is not worth writing down."""
    pairs = ((one.round_trip_seconds, other.round_trip_seconds), (one.bits_per_second, other.bits_per_second))
    return all(a == b or (a and b and max(a, b) <= WORTH_WRITING * min(a, b)) for a, b in pairs)


def _strings_and_count(fields: dict[str, Any]) -> dict[str, Any]:
    blocks = fields["blocks"]
    if not isinstance(blocks, int) or isinstance(blocks, bool) or blocks < 1:
        raise ValueError("no count of blocks")
    return {**{name: str(fields[name]) for name in ("hardware", "model", "dtype", "quant")}, "blocks": blocks}


def _rates(fields: dict[str, Any]) -> dict[str, float]:
    names = ("decode_tokens_per_second", "prefill_tokens_per_second")
    return {name: _positive(fields[name]) for name in names}


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise ValueError("no rate")
    return float(value)
