"""A reason that came from a peer → the error to raise here. Believes neither its code nor its text."""

from __future__ import annotations

from swarmnode.errors import (
    ModelMismatch,
    PeerBusy,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    ProtocolViolation,
    ReplayNeeded,
    SwarmnodeError,
)

from . import limits
from .wire import clean_text

__all__ = ["WIRE_CODES", "error_from"]

# What a peer may say. The other codes blame the person who asked, this machine, or the swarm as a whole; a peer can
# know nothing of these, so from a peer they are but a refusal.
_WIRE_ERRORS: tuple[type[SwarmnodeError], ...] = (
    ModelMismatch,
    PeerBusy,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    ProtocolViolation,
    ReplayNeeded,
)
_BY_CODE = {error.code: error for error in _WIRE_ERRORS}

WIRE_CODES = frozenset(_BY_CODE)
"""The codes that mean the same at both ends; a peer's any other code reads as `peer-refused`."""

_MAX_SHOWN_CHARS = 300


def error_from(
    code: str,
    message: str,
    hint: str = "",
    *,
    peer: str | None = None,
    span: tuple[int, int] | None = None,
    retry_after_seconds: float | None = None,
) -> SwarmnodeError:
    """The error for a refusal or a break.

    The texts are marked as the peer's words, so that no peer can speak in the program's own voice ("run this as
    root"), cleaned of control characters and cut to 300 characters.

    Args:
        code, message, hint: as they came.
        peer: who said it, as proved by its key.
        span: the blocks it was to run.
        retry_after_seconds: when to ask again, as it came, if it did; kept for `PeerBusy`.
    """
    error = _BY_CODE.get(code, PeerRefused)
    who = f"Peer {peer}" if peer else "A peer"
    said = clean_text(message, _MAX_SHOWN_CHARS)
    advice = clean_text(hint, _MAX_SHOWN_CHARS)
    shown = f"{who} says: {said}" if said else f"{who} gave no reason ({clean_text(code, limits.MAX_WORD_CHARS)})."
    suggested = f"It suggests: {advice}" if advice else ""
    if error is PeerBusy:
        return PeerBusy(shown, hint=suggested, peer=peer, span=span, retry_after_seconds=retry_after_seconds)
    return error(shown, hint=suggested, peer=peer, span=span)
