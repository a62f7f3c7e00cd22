"""A connection before it has streams: negotiated on in plain, then sealed frame by frame. Knows no libp2p, no Noise.

Sealed bytes travel as Noise messages do in libp2p: two bytes of length, big-endian, then the cipher text.
"""

from __future__ import annotations

from collections.abc import Callable

from .wire import Wire, WireLost
from .yamux import Seal

__all__ = ["YAMUX", "EarlyStream", "Sealed"]

YAMUX = "/yamux/1.0.0"
_MAX_PLAIN_BYTES = 65519
_TAG_BYTES = 16


class Sealed:
    """Frames to cipher text and back; a `Seal`."""

    def __init__(self, encrypt: Callable[[bytes], bytes], decrypt: Callable[[bytes], bytes]) -> None:
        self._encrypt = encrypt
        self._decrypt = decrypt
        self._buffer = b""

    def seal(self, frame: bytes) -> bytes:
        """One frame, at most 65,519 bytes, as it travels."""
        if len(frame) > _MAX_PLAIN_BYTES:
            raise ValueError("a frame must fit one message")
        return (len(frame) + _TAG_BYTES).to_bytes(2, "big") + self._encrypt(frame)

    def unseal(self, data: bytes) -> list[bytes]:
        buffer = self._buffer + data if self._buffer else data
        plain: list[bytes] = []
        at = 0
        while len(buffer) - at >= 2:
            end = at + 2 + int.from_bytes(buffer[at : at + 2], "big")
            if end > len(buffer):
                break
            try:
                plain.append(self._decrypt(buffer[at + 2 : end]))
            except Exception as error:
                raise WireLost("what came was not sealed by the other end") from error
            at = end
        self._buffer = buffer[at:]
        return plain


class EarlyStream:
    """The whole connection as one stream, for the time of the handshake."""

    def __init__(self, wire: Wire, peer: str, *, seal: Seal | None = None, early: bytes = b"") -> None:
        self._wire = wire
        self._peer = peer
        self._seal = seal
        self._buffer = bytearray()
        self._take(early)

    @property
    def peer(self) -> str:
        return self._peer

    async def send_all(self, data: bytes) -> None:
        """Send. Raises `WireLost`."""
        self._wire.write(self._seal.seal(data) if self._seal is not None else data)

    async def receive_some(self, max_bytes: int) -> bytes:
        """What has come, `b""` at the end. Raises `WireLost`."""
        while not self._buffer:
            data = await self._wire.receive()
            if not data:
                return b""
            self._take(data)
        piece = bytes(self._buffer[:max_bytes])
        del self._buffer[:max_bytes]
        return piece

    def unread(self, piece: bytes) -> None:
        self._buffer[:0] = piece

    def rest(self) -> bytes:
        """What has come and was not read, plain; after this the stream is not used any more."""
        return bytes(self._buffer)

    def _take(self, data: bytes) -> None:
        if self._seal is None:
            self._buffer += data
        elif data:
            for plain in self._seal.unseal(data):
                self._buffer += plain
