"""What is said at the gate of a private swarm, before a connection carries anything else. Knows no key.

dialler → listener   hello    our nonce
listener → dialler   answer   its nonce and its proof
dialler → listener   proof    ours
either → other       shut     why not
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from swarmnode.errors import ProtocolViolation

from . import limits
from .frames import Frame, encode_frame
from .wire import Fields, shown

__all__ = ["KEY_WANTED", "NO_KEY", "WRONG_KEY", "Answer", "GateMessage", "Hello", "Proof", "Shut", "encode", "parse"]

KEY_WANTED: Final = "key-wanted"
"""Why `shut`: this swarm has a key, and you did not show one."""
NO_KEY: Final = "no-key"
"""Why `shut`: you ask for a key, and we have none."""
WRONG_KEY: Final = "wrong-key"
"""Why `shut`: your proof is not one of our key."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The dialler begins."""

    type: ClassVar[str] = "hello"
    nonce: bytes

    def to_map(self) -> dict[str, object]:
        return {"nonce": self.nonce}

    @staticmethod
    def read(fields: Fields) -> Hello:
        return Hello(fields.binary("nonce", limits.NONCE_BYTES))


@dataclass(frozen=True, slots=True)
class Answer:
    """The listener proves first: a stranger learns no more from it than that there is a key."""

    type: ClassVar[str] = "answer"
    nonce: bytes
    proof: bytes

    def to_map(self) -> dict[str, object]:
        return {"nonce": self.nonce, "proof": self.proof}

    @staticmethod
    def read(fields: Fields) -> Answer:
        return Answer(
            fields.binary("nonce", limits.NONCE_BYTES),
            fields.binary("proof", limits.PROOF_BYTES),
        )


@dataclass(frozen=True, slots=True)
class Proof:
    """The dialler has checked the listener's proof and gives its own."""

    type: ClassVar[str] = "proof"
    proof: bytes

    def to_map(self) -> dict[str, object]:
        return {"proof": self.proof}

    @staticmethod
    def read(fields: Fields) -> Proof:
        return Proof(fields.binary("proof", limits.PROOF_BYTES))


@dataclass(frozen=True, slots=True)
class Shut:
    """No: the connection ends after this. `why` is one of this file's codes; one that is not known is a no too."""

    type: ClassVar[str] = "shut"
    why: str

    def to_map(self) -> dict[str, object]:
        return {"why": self.why}

    @staticmethod
    def read(fields: Fields) -> Shut:
        return Shut(fields.text("why", limits.MAX_WORD_CHARS, least_chars=1))


GateMessage = Hello | Answer | Proof | Shut

_READERS: Final[dict[str, Callable[[Fields], GateMessage]]] = {
    kind.type: kind.read for kind in (Hello, Answer, Proof, Shut)
}


def encode(message: GateMessage) -> bytes:
    """A message's frame."""
    head, _ = encode_frame({"type": message.type, **message.to_map()})
    return head


def parse(frame: Frame) -> GateMessage:
    """The message of a frame, its fields checked. Raises `ProtocolViolation`."""
    kind = Fields("message", frame.header).text("type", limits.MAX_WORD_CHARS)
    reader = _READERS.get(kind)
    if reader is None:
        raise ProtocolViolation(f'"{shown(kind)}" is not a message of the gate.')
    if frame.body.nbytes:
        raise ProtocolViolation(f"{kind}: it has a body of {frame.body.nbytes} bytes and must have none.")
    return reader(Fields(kind, frame.header))
