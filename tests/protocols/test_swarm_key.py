"""A swarm key's file, its proof and the gate's messages: what is taken, what is not, and what a proof is good for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from support.golden import BINDING, GATE_EXAMPLES, OTHER_PEER, PEER, SWARM_KEY
from support.said import only_frame
from swarmnode.errors import ProtocolViolation
from swarmnode.protocols import gate, limits
from swarmnode.protocols.frames import Frame, FrameReader
from swarmnode.protocols.swarm_key import (
    Binding,
    Side,
    SwarmKey,
    exporter_from_handshake,
    is_proof,
    key_file,
    prove,
    read_key_file,
)

DIGITS = "ab" * 32


def test_what_is_written_is_read() -> None:
    assert read_key_file(key_file(SWARM_KEY)).secret == SWARM_KEY.secret


@pytest.mark.parametrize(
    "text",
    [
        f"swarmnode swarm key 1\r\n{DIGITS}\r\n",
        f"\n swarmnode swarm key 1 \n\t{DIGITS.upper()}",
    ],
)
def test_editors_are_forgiven(text: str) -> None:
    assert read_key_file(text.encode()).secret == bytes.fromhex(DIGITS)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is empty"),
        (b" \n ", "it is empty"),
        (b"swarmnode swarm key 1\n", "it has 1 lines and not two"),
        (f"swarmnode swarm key 1\n{DIGITS}\n{DIGITS}".encode(), "it has 3 lines and not two"),
        (f"swarmnode swarm key 1\n{DIGITS[:-1]}".encode(), "second line is not 64 hexadecimal digits"),
        (f"swarmnode swarm key 1\n{DIGITS[:-1]}g".encode(), "second line is not 64 hexadecimal digits"),
        (f"swarmnode swarm key 2\n{DIGITS}".encode(), "its first line is not 'swarmnode swarm key 1'"),
        (f"/key/swarm/psk/1.0.0/\n/base16/\n{DIGITS}".encode(), "another libp2p program's private network"),
        (b"\x08\x01\x12\x40" + bytes(range(150, 214)), "it is not plain text"),
        (b"a" * 2000, "it is too long for a key"),
    ],
)
def test_what_is_no_key_is_said_without_showing_it(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        read_key_file(data)
    assert DIGITS[:8] not in str(caught.value)


@given(st.binary(max_size=200))
def test_rubbish_is_no_key(data: bytes) -> None:
    with pytest.raises(ValueError, match="it"):
        read_key_file(data)


def test_a_key_is_not_shown_by_accident() -> None:
    assert SWARM_KEY.secret.hex() not in repr(SWARM_KEY)
    assert str(SWARM_KEY.secret) not in repr(SWARM_KEY)


OTHERS = [
    replace(BINDING, dialler=OTHER_PEER),
    replace(BINDING, listener=PEER),
    replace(BINDING, dialler=BINDING.listener, listener=BINDING.dialler),
    replace(BINDING, dialler_nonce=bytes(32)),
    replace(BINDING, listener_nonce=bytes(32)),
    replace(BINDING, dialler_nonce=BINDING.listener_nonce, listener_nonce=BINDING.dialler_nonce),
    replace(BINDING, exported=bytes(32)),
]


@pytest.mark.parametrize("side", ["dialler", "listener"])
def test_a_proof_is_good_for_its_connection_and_side_only(side: Side) -> None:
    proof = prove(SWARM_KEY, BINDING, side)
    assert len(proof) == limits.PROOF_BYTES
    assert is_proof(SWARM_KEY, BINDING, side, proof)
    assert not is_proof(SWARM_KEY, BINDING, "listener" if side == "dialler" else "dialler", proof)
    assert not is_proof(SwarmKey(bytes(32)), BINDING, side, proof)
    for other in OTHERS:
        assert not is_proof(SWARM_KEY, other, side, proof)
    for bit in range(8 * len(proof)):
        bent = bytearray(proof)
        bent[bit // 8] ^= 1 << bit % 8
        assert not is_proof(SWARM_KEY, BINDING, side, bytes(bent))


@pytest.mark.parametrize("name", ["dialler_nonce", "listener_nonce", "exported"])
def test_parts_of_another_length_are_a_bug_of_ours(name: str) -> None:
    binding: Binding = replace(BINDING, **{name: bytes(31)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a part of a proof has 32 bytes"):
        prove(SWARM_KEY, binding, "dialler")


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=40), st.binary(max_size=40), st.integers(1, 300))
def test_noise_exports_what_hkdf_gives(secret: bytes, label: bytes, context: bytes, length: int) -> None:
    theirs = HKDF(SHA256(), length, salt=None, info=label + b"\x00" + context).derive(secret)
    assert exporter_from_handshake(secret, label, context, length) == theirs


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"type": "hello"}, "nonce is missing"),
        ({"type": "hello", "nonce": bytes(31)}, "nonce must have 32 bytes, not 31"),
        ({"type": "hello", "nonce": "x" * 32}, "nonce must be bytes"),
        ({"type": "answer", "nonce": bytes(32)}, "proof is missing"),
        ({"type": "proof", "proof": bytes(33)}, "proof must have 32 bytes"),
        ({"type": "shut", "why": ""}, "why must not be empty"),
        ({"type": "shut", "why": "x" * 33}, "why must have at most 32 characters"),
        ({"type": "open\x1b[31m"}, "not printable"),
        ({"type": "open"}, '"open" is not a message of the gate'),
        ({}, "type is missing"),
    ],
)
def test_messages_that_are_none(header: dict[str, object], message: str) -> None:
    with pytest.raises(ProtocolViolation, match=message):
        gate.parse(Frame(header, memoryview(b"")))


def test_no_message_has_a_body() -> None:
    for example in GATE_EXAMPLES:
        with pytest.raises(ProtocolViolation, match="must have none"):
            gate.parse(Frame(only_frame(example.data).header, memoryview(b"x")))


@given(st.sampled_from(GATE_EXAMPLES), st.data())
def test_damaged_messages_are_refused(example: object, data: st.DataObject) -> None:
    damaged = bytearray(example.data)  # type: ignore[attr-defined]
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ProtocolViolation):
        read(bytes(damaged))


def read(data: bytes) -> gate.GateMessage:
    reader = FrameReader(0)
    reader.feed(data)
    if (frame := reader.next_frame()) is None:
        raise ProtocolViolation("It claims to be longer than it is.")
    return gate.parse(frame)
