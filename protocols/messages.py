"""What is said on a session stream or on one for training, to a frame and back; and what keeps or ends either.

`encode` gives the two buffers of a frame, `parse` the message of a frame with every field checked. A message is its
class; the `type` field names it on the wire. A message's tensor is the frame's body. In which order
messages may come is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, get_args

from typing_extensions import Buffer

from swarmnode.errors import ProtocolViolation

from . import limits
from .common import read_optional_peer, read_reason, read_retry_after, reason_to_map
from .frames import Frame, encode_frame
from .ids import ModelId
from .opening import Attach, Attached, Open, Opened, Refused, Successor
from .stepping import HopTrace, Output, Step
from .tensors import TensorHeader, check_body
from .training import Gradients, Prompts, Ready, Rows, Train
from .wire import Fields, pack, shown

__all__ = [
    "Attach",
    "Attached",
    "Break",
    "Close",
    "Gradients",
    "HopTrace",
    "Message",
    "ModelId",
    "Open",
    "Opened",
    "Output",
    "Ping",
    "Pong",
    "Prompts",
    "Ready",
    "Refused",
    "Rows",
    "Step",
    "Successor",
    "TensorHeader",
    "Train",
    "encode",
    "pack_header",
    "parse",
]


@dataclass(frozen=True, slots=True)
class Break:
    """Ends the session at once and says why.

    Attributes:
        step: the step it happened at, if it was at one.
        peer: the peer at fault when it is not the sender.
        retry_after_seconds: of `peer-busy`, when another session makes sense.
    """

    type: ClassVar[str] = "break"
    code: str
    message: str
    hint: str = ""
    step: int | None = None
    peer: str | None = None
    retry_after_seconds: float | None = None

    def to_map(self) -> dict[str, object]:
        later = {} if self.retry_after_seconds is None else {"retry_after_seconds": self.retry_after_seconds}
        return reason_to_map(self.code, self.message, self.hint) | {"step": self.step, "peer": self.peer} | later

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Break:
        step = fields.integer("step", limits.MAX_STEP_NUMBER) if fields.has("step") else None
        later = read_retry_after(fields)
        return Break(*read_reason(fields), step, read_optional_peer(fields, "peer"), later)


@dataclass(frozen=True, slots=True)
class Close:
    """The session is over and all is well."""

    type: ClassVar[str] = "close"

    def to_map(self) -> dict[str, object]:
        return {}

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Close:
        return Close()


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Answered by a pong with the same nonce, ahead of anything that waits to be computed."""

    type: ClassVar[str] = "ping"
    nonce: int

    def to_map(self) -> dict[str, object]:
        return {"nonce": self.nonce}

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Ping:
        return Ping(fields.integer("nonce", limits.MAX_INT))


@dataclass(frozen=True, slots=True)
class Pong:
    """I am."""

    type: ClassVar[str] = "pong"
    nonce: int

    def to_map(self) -> dict[str, object]:
        return {"nonce": self.nonce}

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Pong:
        return Pong(fields.integer("nonce", limits.MAX_INT))


Message = (
    Open
    | Opened
    | Attach
    | Attached
    | Step
    | Output
    | Refused
    | Break
    | Close
    | Ping
    | Pong
    | Train
    | Ready
    | Prompts
    | Rows
    | Gradients
)
_WithTensor = Step | Output | Prompts | Rows | Gradients

_READERS: dict[str, Callable[[Fields, int], Message]] = {kind.type: kind.read for kind in get_args(Message)}


def encode(message: Message, body: Buffer = b"") -> tuple[bytes, memoryview]:
    """The two buffers of a message's frame, to be sent one after the other.

    Args:
        message: what to say.
        body: the bytes of `message.tensor`, if it has one; left alone until sent, not copied.

    Raises:
        ValueError: the body is not as long as the message says. Our own mistake, not a peer's.
    """
    _check_length(message, memoryview(body).nbytes)
    return encode_frame(_map_of(message), body)


def pack_header(message: Message, body_bytes: int) -> bytes:
    """The header of a message's frame alone, for a transport that makes the frame. Raises as `encode`."""
    _check_length(message, body_bytes)
    return pack(_map_of(message))


def _map_of(message: Message) -> dict[str, object]:
    return {"type": message.type, **message.to_map()}


def _check_length(message: Message, body_bytes: int) -> None:
    fits = message.tensor.has_length(body_bytes) if isinstance(message, _WithTensor) else not body_bytes
    if not fits:
        raise ValueError(f"a {message.type} was given {body_bytes} body bytes, which it cannot have")


def parse(frame: Frame) -> Message:
    """The message of a frame, all fields checked, and the header of a coded body. Raises `ProtocolViolation`."""
    kind = Fields("message", frame.header).text("type", limits.MAX_WORD_CHARS)
    reader = _READERS.get(kind)
    if reader is None:
        raise ProtocolViolation(f'"{shown(kind)}" is not a message of a session or of training.')
    message = reader(Fields(kind, frame.header), frame.body.nbytes)
    if isinstance(message, _WithTensor):
        check_body(message.tensor, frame.body)
    elif frame.body.nbytes:
        raise ProtocolViolation(f"{kind}: it has a body of {frame.body.nbytes} bytes and must have none.")
    return message
