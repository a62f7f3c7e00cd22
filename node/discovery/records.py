"""The directory's messages over streams: one request and its answer to a stream, bounded in time, size and number."""

from __future__ import annotations

from collections.abc import Callable

import trio

from swarmnode.errors import PeerLost, PeerUnreachable, ProtocolViolation
from swarmnode.node.net.network import Network, PeerAddrs, Stream
from swarmnode.protocols.directory import DirectoryMessage, Refused, encode, parse
from swarmnode.protocols.frames import FrameReader
from swarmnode.protocols.limits import MAX_DIRECTORY_BODY_BYTES
from swarmnode.protocols.refusals import error_from

from .announcing import Pace

__all__ = ["PEER_SECONDS", "Responder", "request"]

PEER_SECONDS = 3.0
"""What one peer may take over one request, dialling it included."""
ANSWER_SECONDS = 5.0
MAX_ANSWERS = 256
"""Requests that are answered at a time; others are told to come again."""
RETRY_SECONDS = 1.0
RECEIVE_BYTES = 64 * 1024


async def request(
    network: Network, protocol: str, peer: PeerAddrs, message: DirectoryMessage, seconds: float
) -> DirectoryMessage:
    """Ask a peer and return what it answers.

    Raises:
        PeerUnreachable, PeerLost: it is not there, or not within so many seconds.
        PeerRefused: it answers no; or does not speak the protocol.
        ProtocolViolation: what it answers is no message.
    """
    try:
        with trio.fail_after(seconds):
            stream = await network.open_stream(peer.peer, protocol, peer.addrs)
            try:
                await _send(stream, message)
                answer = await _receive(stream)
            except BaseException:
                await stream.reset()
                raise
            await stream.aclose()
    except trio.TooSlowError as error:
        raise PeerUnreachable(f"{peer.peer} did not answer within {seconds:.0f} s.", peer=peer.peer) from error
    if isinstance(answer, Refused):
        raise error_from(answer.code, answer.message, answer.hint, peer=peer.peer)
    return answer


class Responder:
    """Answers requests of a protocol: a `StreamHandler`.

    Args:
        answer: makes the answer to a request that a peer sent.
        now: seconds on a clock that never goes back.
    """

    def __init__(self, answer: Callable[[str, DirectoryMessage], DirectoryMessage], now: Callable[[], float]) -> None:
        self._answer = answer
        self._now = now
        self._pace = Pace()
        self._busy = trio.CapacityLimiter(MAX_ANSWERS)

    async def __call__(self, stream: Stream) -> None:
        busy = Refused("peer-busy", "Too many requests.", retry_after_seconds=RETRY_SECONDS)
        if not self._pace.allows(stream.peer, self._now()) or not self._busy.available_tokens:
            with trio.move_on_after(ANSWER_SECONDS):
                await _send(stream, busy)
            return
        async with self._busy:
            with trio.move_on_after(ANSWER_SECONDS):
                await _send(stream, self._answer(stream.peer, await _receive(stream)))


async def _send(stream: Stream, message: DirectoryMessage) -> None:
    head, body = encode(message)
    await stream.send_all(head + body)


async def _receive(stream: Stream) -> DirectoryMessage:
    reader = FrameReader(MAX_DIRECTORY_BODY_BYTES)
    try:
        while (frame := reader.next_frame()) is None:
            data = await stream.receive_some(RECEIVE_BYTES)
            if not data:
                raise PeerLost(f"{stream.peer} ended the stream before its message.", peer=stream.peer)
            reader.feed(data)
        return parse(frame)
    except ProtocolViolation as violation:
        raise ProtocolViolation(violation.message, hint=violation.hint, peer=stream.peer) from violation
