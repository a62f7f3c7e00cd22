"""multistream-select: the two ends of a stream agree on its protocol (libp2p specs, "protocol negotiation").

One round trip when the other end speaks the protocol: the greeting and the wish travel together. Knows no libp2p.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Protocol

from swarmnode.errors import PeerLost, PeerRefused, ProtocolViolation

__all__ = ["Negotiable", "choose", "offer"]

_GREETING = "/multistream/1.0.0"
_NOT_SPOKEN = "na"
MAX_LINE_BYTES = 1024
MAX_WISHES = 32
"""How many protocols the other end may ask for before it is given up."""


class Negotiable(Protocol):
    """What negotiation needs of a stream."""

    @property
    def peer(self) -> str: ...
    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, max_bytes: int) -> bytes: ...
    def unread(self, piece: bytes) -> None:
        """Put back what was read too much."""


async def choose(stream: Negotiable, protocol: str, *, then: bytes = b"") -> None:
    """Ask for a protocol; `then` is said in the same breath, for who speaks it.

    Raises:
        PeerRefused: the other end does not speak it.
        ProtocolViolation: it answers something else.
        PeerLost: the stream broke.
    """
    await stream.send_all(_line(_GREETING) + _line(protocol) + then)
    lines = _Lines(stream)
    await _greeted(lines)
    answer = await lines.next()
    lines.finish()
    if answer == protocol:
        return
    if answer == _NOT_SPOKEN:
        raise PeerRefused(
            f"{stream.peer} does not speak {protocol}.",
            hint="It may run another version of swarmnode.",
            peer=stream.peer,
        )
    raise ProtocolViolation(f"{stream.peer} answered a protocol it was not asked for.", peer=stream.peer)


async def offer(stream: Negotiable, protocols: Container[str], *, max_wishes: int = MAX_WISHES) -> str:
    """Let the other end pick one of our protocols, and return it. Raises `ProtocolViolation`, `PeerLost`."""
    await stream.send_all(_line(_GREETING))
    lines = _Lines(stream)
    await _greeted(lines)
    for wishes in range(1, max_wishes + 1):
        wish = await lines.next()
        if wish in protocols:
            lines.finish()
            await stream.send_all(_line(wish))
            return wish
        if wishes < max_wishes:
            await stream.send_all(_line(_NOT_SPOKEN))
    raise ProtocolViolation(f"{stream.peer} asked for {max_wishes} protocols that we do not speak.", peer=stream.peer)


async def _greeted(lines: _Lines) -> None:
    if await lines.next() != _GREETING:
        raise ProtocolViolation(f"{lines.peer} does not speak multistream-select.", peer=lines.peer)


def _line(text: str) -> bytes:
    body = text.encode() + b"\n"
    if len(body) >= MAX_LINE_BYTES:
        raise ValueError("a protocol's name is too long")
    size = len(body)
    return (bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])) + body


class _Lines:
    """Length-prefixed lines read from a stream."""

    def __init__(self, stream: Negotiable) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._buffer = bytearray()

    async def next(self) -> str:
        size, shift = 0, 0
        while True:
            byte = (await self._take(1))[0]
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 14:
                raise self._broken()
        if not 0 < size <= MAX_LINE_BYTES:
            raise self._broken()
        body = await self._take(size)
        if body[-1:] != b"\n":
            raise self._broken()
        try:
            return body[:-1].decode()
        except UnicodeDecodeError:
            raise self._broken() from None

    def finish(self) -> None:
        self._stream.unread(bytes(self._buffer))

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self._stream.receive_some(MAX_LINE_BYTES)
            if not data:
                raise PeerLost(f"{self.peer} closed the stream before a protocol was agreed on.", peer=self.peer)
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _broken(self) -> ProtocolViolation:
        return ProtocolViolation(f"{self.peer} does not speak multistream-select.", peer=self.peer)
