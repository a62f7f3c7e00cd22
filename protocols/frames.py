"""Frames: a prefix, a msgpack header and a tensor's bytes, checked before they are believed. Knows no message.

offset  bytes  what
     0      3  magic b"SWN"
     3      1  frame version, 1
     4      4  header bytes, little-endian
     8      4  body bytes, little-endian
    12      4  CRC-32C of all the other bytes of the frame, padding included
    16      h  header, one msgpack map
               zeros up to a multiple of 64, only when there is a body
            b  body
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from typing_extensions import Buffer

from swarmnode._native import frame_checksum
from swarmnode.errors import ProtocolViolation

from . import limits
from .wire import pack, unpack_map

__all__ = ["FRAME_VERSION", "MAX_BODY_BYTES", "Frame", "FrameReader", "encode_frame", "open_frame"]

FRAME_VERSION = 1
MAX_BODY_BYTES = limits.MAX_BODY_BYTES

_MAGIC = b"SWN"
_PREFIX = struct.Struct("<3sBIII")
_CHECKED_PREFIX_BYTES = 12  # all of it but the checksum itself
_ZEROS = bytes(limits.BODY_ALIGNMENT_BYTES)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it came: a map of plain values within limits, and the body's bytes (a view, not a copy)."""

    header: Mapping[str, object]
    body: memoryview


def encode_frame(header: Mapping[str, object], body: Buffer = b"") -> tuple[bytes, memoryview]:
    """The two buffers of a frame, to be sent one after the other.

    Args:
        header: what `wire.pack` takes.
        body: C-contiguous; not copied, so leave it alone until it is sent.

    Raises:
        ValueError: header or body are longer than any peer would take. Our own mistake, not a peer's.
    """
    view = memoryview(body)
    view = view.cast("B") if view.nbytes else memoryview(b"")
    packed = pack(header)
    if len(packed) > limits.MAX_HEADER_BYTES or view.nbytes > limits.MAX_BODY_BYTES:
        raise ValueError(f"a frame of {len(packed)} + {view.nbytes} bytes is over the limits")
    prefix = _PREFIX.pack(_MAGIC, FRAME_VERSION, len(packed), view.nbytes, 0)[:_CHECKED_PREFIX_BYTES]
    rest = packed + _ZEROS[: _padding_bytes(len(packed), view.nbytes)]
    checksum = frame_checksum(prefix, rest, view)
    return prefix + checksum.to_bytes(4, "little") + rest, view


def open_frame(header: bytes | memoryview, body: memoryview) -> Frame:
    """A frame from its two parts, which a transport has cut and checked. Raises `ProtocolViolation`."""
    return Frame(unpack_map(header, "frame header"), body)


def _padding_bytes(header_bytes: int, body_bytes: int) -> int:
    return -(limits.PREFIX_BYTES + header_bytes) % limits.BODY_ALIGNMENT_BYTES if body_bytes else 0


class FrameReader:
    """Bytes in, frames out: `feed` what came, then take `next_frame` until it gives None.

    Costs time linear in the bytes however they are cut, and holds no more than one frame beyond what was fed: a frame
    grows as its bytes come, a length that a peer merely claims reserves nothing. After a `ProtocolViolation` the
    reader stays broken and repeats it, as nobody can tell where the next frame would start.

    Args:
        max_body_bytes: the longest body to take; longer ones are refused when their prefix is seen.
    """

    __slots__ = ("_broken", "_fed", "_frame", "_lengths", "_max_body_bytes")

    def __init__(self, max_body_bytes: int = limits.MAX_BODY_BYTES) -> None:
        self._max_body_bytes = min(max_body_bytes, limits.MAX_BODY_BYTES)
        self._fed: deque[memoryview] = deque()
        self._frame = bytearray()
        self._lengths: tuple[int, int, int] | None = None  # header, body, checksum: once the prefix is known
        self._broken: tuple[str, str] | None = None

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun and not ended: an end of stream now is an early one."""
        return bool(self._frame or self._fed)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes as they came. A mutable buffer is copied, `bytes` are not."""
        if data and self._broken is None:
            self._fed.append(memoryview(bytes(data)))

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more is fed. Raises `ProtocolViolation`."""
        if self._broken is not None:
            message, hint = self._broken
            raise ProtocolViolation(message, hint=hint)
        try:
            return self._next_frame()
        except ProtocolViolation as violation:
            self._broken = violation.message, violation.hint
            self._fed.clear()
            self._frame = bytearray()
            raise

    def _next_frame(self) -> Frame | None:
        if self._lengths is None:
            if not self._fill(limits.PREFIX_BYTES):
                return None
            self._lengths = self._read_prefix()
        header_bytes, body_bytes, checksum = self._lengths
        header_end = limits.PREFIX_BYTES + header_bytes
        body_start = header_end + _padding_bytes(header_bytes, body_bytes)
        if not self._fill(body_start + body_bytes):
            return None
        whole = memoryview(self._frame)
        self._frame = bytearray()
        self._lengths = None
        if frame_checksum(whole[:_CHECKED_PREFIX_BYTES], whole[limits.PREFIX_BYTES :]) != checksum:
            raise ProtocolViolation("A frame's checksum does not match its bytes.")
        if whole[header_end:body_start] != _ZEROS[: body_start - header_end]:
            raise ProtocolViolation("A frame's padding is not zero.")
        return open_frame(whole[limits.PREFIX_BYTES : header_end], whole[body_start:])

    def _fill(self, want_bytes: int) -> bool:
        """Move fed bytes to the frame until it has so many; each byte is copied once."""
        while (missing := want_bytes - len(self._frame)) > 0:
            if not self._fed:
                return False
            chunk = self._fed[0]
            self._frame += chunk[:missing]
            if len(chunk) > missing:
                self._fed[0] = chunk[missing:]
            else:
                self._fed.popleft()
        return True

    def _read_prefix(self) -> tuple[int, int, int]:
        magic, version, header_bytes, body_bytes, checksum = _PREFIX.unpack(self._frame)
        if magic != _MAGIC:
            raise ProtocolViolation("The bytes are not a swarmnode frame.")
        if version != FRAME_VERSION:
            raise ProtocolViolation(
                f"The peer speaks frame version {version}, we speak version {FRAME_VERSION}.",
                hint="Update whichever of the two is older.",
            )
        if not 0 < header_bytes <= limits.MAX_HEADER_BYTES:
            raise ProtocolViolation(
                f"A frame claims a header of {header_bytes} bytes; it may have 1 to {limits.MAX_HEADER_BYTES}."
            )
        if body_bytes > self._max_body_bytes:
            raise ProtocolViolation(
                f"A frame claims a body of {body_bytes} bytes; at most {self._max_body_bytes} are taken here."
            )
        return header_bytes, body_bytes, checksum
