"""A peer's reason becomes an error here, and nothing more than that."""

from __future__ import annotations

import pytest

from swarmnode import errors
from swarmnode.protocols.refusals import WIRE_CODES, error_from

PEER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("peer-busy", errors.PeerBusy),
        ("peer-refused", errors.PeerRefused),
        ("replay-needed", errors.ReplayNeeded),
        ("peer-lost", errors.PeerLost),
        ("peer-unreachable", errors.PeerUnreachable),
        ("protocol-violation", errors.ProtocolViolation),
        ("model-mismatch", errors.ModelMismatch),
        ("never-heard-of", errors.PeerRefused),
        ("", errors.PeerRefused),
        # A peer cannot blame the person who asked, our machine or the whole swarm.
        ("bad-range", errors.PeerRefused),
        ("prompt-too-long", errors.PeerRefused),
        ("out-of-memory", errors.PeerRefused),
        ("disk-full", errors.PeerRefused),
        ("no-peers", errors.PeerRefused),
        ("error", errors.PeerRefused),
    ],
)
def test_a_code_gives_its_error(code: str, kind: type[errors.SwarmnodeError]) -> None:
    error = error_from(code, "No.", "Ask another.", peer=PEER, span=(3, 7))
    assert type(error) is kind
    assert error.peer == PEER
    assert error.span == (3, 7)


def test_every_code_on_the_wire_is_a_code_of_ours() -> None:
    assert {error_from(code, "").code for code in WIRE_CODES} == WIRE_CODES


def test_the_words_stay_the_peers() -> None:
    error = error_from("peer-busy", "All sessions are taken.", "Run this as root.", peer=PEER)
    assert error.message == f"Peer {PEER} says: All sessions are taken."
    assert error.hint == "It suggests: Run this as root."


def test_being_busy_has_a_time() -> None:
    error = error_from("peer-busy", "No room.", peer=PEER, retry_after_seconds=4.5)
    assert isinstance(error, errors.PeerBusy)
    assert error.retry_after_seconds == 4.5
    assert type(error_from("peer-refused", "No.", retry_after_seconds=4.5)) is errors.PeerRefused


def test_text_is_cleaned_and_cut() -> None:
    error = error_from("peer-busy", "\x1b[2J\n" + "x" * 5_000, "\x00" * 5_000)
    assert error.message.isprintable()
    assert len(error.message) < 350
    assert error.hint == ""


def test_no_reason_at_all() -> None:
    error = error_from("odd\x1bcode" + "x" * 99, "", peer=PEER)
    assert error.message == f"Peer {PEER} gave no reason (odd code{'x' * 23}…)."
    assert error_from("peer-busy", "").message == "A peer gave no reason (peer-busy)."
