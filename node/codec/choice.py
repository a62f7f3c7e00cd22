"""In which codec a message is sent: by what the session allows, its size, and the link. Pure: no clock, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from swarmnode.errors import BadInput
from swarmnode.node.links import Link
from swarmnode.protocols.tensors import (
    CODEC_E4M3,
    CODEC_H4,
    CODEC_H6,
    CODEC_H8,
    CODEC_LOSSLESS,
    CODEC_RAW,
    KNOWN_CODECS,
    TensorHeader,
)

from . import COMPRESSIONS, Compression

__all__ = ["as_compression", "choose_codec", "offered_codecs", "send_codec"]

_OFFERS: Final[dict[Compression, tuple[int, ...]]] = {
    "auto": (CODEC_H8, CODEC_LOSSLESS, CODEC_RAW),
    "raw": (CODEC_RAW,),
    "lossless": (CODEC_LOSSLESS, CODEC_RAW),
    "h8": (CODEC_H8, CODEC_RAW),
    "h6": (CODEC_H6, CODEC_H8, CODEC_RAW),
    "fp8": (CODEC_E4M3, CODEC_RAW),
    "h4": (CODEC_H4, CODEC_H8, CODEC_RAW),
}

FAST_BITS_PER_SECOND: Final = 7e9
"""From here on nothing is sent with a loss: making and reading h8 takes about as long as it saves."""

PACKET_BYTES: Final = 1200
"""What surely fits one packet beside its headers and the frame's: one packet less of bytes is no packet less."""

LAN_ROUND_TRIP_SECONDS: Final = 0.002
"""A peer whose answers are this quick is taken to be on a local network."""

LAN_BITS_PER_SECOND: Final = 1e9
WAN_BITS_PER_SECOND: Final = 1e8
"""What links are taken to carry that nobody has measured."""

LOSSLESS_SAVED_BYTES: Final = {"float32": 0.60, "bfloat16": 0.60, "float16": 0.25}
"""For each value, a little less than SmolLM2's hidden states give (`scripts/bench codec`)."""

LOSSLESS_VALUES_PER_SECOND: Final = 0.4e9
"""Encoded and decoded, one after the other, on one core that has other work."""

LOSSLESS_SECONDS: Final = 5e-6
"""What both take for a message however short."""

LOSSLESS_VALUES: Final = 1024
"""Fewer do not become shorter: their header and padding outweigh what their exponents give."""


def as_compression(name: str) -> Compression:
    """The name of a way to compress. Raises `BadInput`."""
    if name not in COMPRESSIONS:
        raise BadInput(f"There is no compression {name!r}.", hint=f"Give one of {', '.join(COMPRESSIONS)}.")
    return cast(Compression, name)


def offered_codecs(compression: Compression) -> tuple[int, ...]:
    """What a client allows in its sessions, what it likes best first."""
    return _OFFERS[compression]


def send_codec(compression: Compression, tensor: TensorHeader, allowed: Sequence[int], link: Link) -> int:
    """The codec of one message.

    Args:
        compression: what this node was told; anything but "auto" is used wherever the session allows it.
        tensor: its dtype and shape.
        allowed: by the session, what its client likes best first.
        link: the way it goes.
    """
    forced = _OFFERS[compression][0]
    if compression != "auto" and forced in allowed:
        return forced
    return choose_codec(tensor, allowed, link)


def choose_codec(tensor: TensorHeader, allowed: Sequence[int], link: Link) -> int:
    """The first codec allowed that is worth its time on this link; raw where none is.

    Raw is what fits one packet or does not leave the machine, and everything on links of 7 Gbit/s and more. The
    lossless codec is used where it saves more time on the wire than it takes.
    """
    if link.near or tensor.raw_bytes <= PACKET_BYTES:
        return CODEC_RAW
    bits_per_second = believed_bits_per_second(link)
    if bits_per_second >= FAST_BITS_PER_SECOND:
        return CODEC_RAW
    for codec in allowed:
        if codec == CODEC_LOSSLESS and not _lossless_pays(tensor, bits_per_second):
            continue
        if codec in KNOWN_CODECS:
            return codec
    return CODEC_RAW


def believed_bits_per_second(link: Link) -> float:
    """What a link carries: measured by the transport, else guessed by its round trip but no more than we saw."""
    if link.bits_per_second is not None:
        return link.bits_per_second
    short = link.round_trip_seconds is not None and link.round_trip_seconds <= LAN_ROUND_TRIP_SECONDS
    guess = LAN_BITS_PER_SECOND if short else WAN_BITS_PER_SECOND
    return guess if link.at_most_bits_per_second is None else min(guess, link.at_most_bits_per_second)


def _lossless_pays(tensor: TensorHeader, bits_per_second: float) -> bool:
    if tensor.values < LOSSLESS_VALUES:
        return False
    saved_seconds = 8 * tensor.values * LOSSLESS_SAVED_BYTES[tensor.dtype] / bits_per_second
    return saved_seconds > LOSSLESS_SECONDS + tensor.values / LOSSLESS_VALUES_PER_SECOND
