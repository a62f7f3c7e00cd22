"""Messages say the same after a frame and back; what breaks a rule is refused with the rule."""

from __future__ import annotations

import pytest
from hypothesis import given

from support.said import MODEL, body_for, messages, only_frame, peer_of, server_key, whole
from swarmnode.errors import ProtocolViolation
from swarmnode.protocols import limits
from swarmnode.protocols.frames import encode_frame
from swarmnode.protocols.messages import (
    Break,
    HopTrace,
    Message,
    Open,
    Output,
    Ping,
    Refused,
    Step,
    Successor,
    TensorHeader,
    encode,
    parse,
)

SESSION_ID = bytes(16)
PEER = peer_of(server_key(1))

OPEN = Open(
    session=SESSION_ID,
    model=MODEL,
    start=10,
    end=20,
    dtype="float32",
    codecs=(0,),
    rows=1,
    max_tokens=4_096,
    predecessor=PEER,
    successor=Successor(PEER, ("/ip4/192.0.2.1/tcp/4001",), SESSION_ID),
)
STEP = Step(step=1, position=5, keep=1, tensor=TensorHeader("float32", (1, 2, 4)), trace=(HopTrace(0, 10, 20, 900),))
OUTPUT = Output(step=1, position=5, next_block=30, tensor=TensorHeader("bfloat16", (1, 1, 8)))
REFUSED = Refused("peer-busy", "No room.", "Come back later.", 5.0)
BREAK = Break("peer-lost", "The successor is gone.", "", 7, PEER)


def said(message: Message, body: bytes | None = None, /, **changes: object) -> Message:
    """What the other end reads when some header fields are changed on the way; `name=...` leaves a field out."""
    header = {"type": message.type, **message.to_map(), **changes}
    header = {name: value for name, value in header.items() if value is not ...}
    return parse(only_frame(whole(encode_frame(header, body_for(message) if body is None else body))))


@given(messages)
def test_round_trip(message: Message) -> None:
    body = body_for(message)
    frame = only_frame(whole(encode(message, body)))
    assert parse(frame) == message
    assert frame.body == body


@pytest.mark.parametrize("message", [OPEN, STEP, OUTPUT, REFUSED, BREAK, Ping(3)], ids=lambda message: message.type)
def test_unknown_fields_are_ignored(message: Message) -> None:
    later: dict[str, object] = {"taps": [1, {"deep": b"x"}], "gather": None, "": 0.5}
    assert said(message, **later) == message


def test_a_longer_trace_entry_is_read_as_far_as_it_is_known() -> None:
    assert said(STEP, trace=[[0, 10, 20, 900, 77, "new"]]) == STEP


def test_optional_fields_may_be_left_out() -> None:
    assert said(OPEN, predecessor=..., successor=...) == said(OPEN, predecessor=None, successor=None)
    assert said(REFUSED, hint=..., message=..., retry_after_seconds=...) == Refused("peer-busy", "")
    assert said(BREAK, hint=..., step=..., peer=...) == Break("peer-lost", "The successor is gone.")


def successor(**changes: object) -> dict[str, object]:
    return {"peer": PEER, "addrs": [], "session": SESSION_ID, **changes}


def tensor(**changes: object) -> dict[str, object]:
    return {"dtype": "float32", "shape": [1, 2, 4], "codec": 0, **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": "shout"}, '"shout" is not a message of a session'),
        ({"type": "find"}, '"find" is not a message of a session'),
        ({"type": "\x1b[2J"}, "not printable"),
        ({"type": None}, "type must be text, not nil"),
        ({"session": bytes(15)}, "session must have 16 bytes, not 15"),
        ({"session": "0" * 16}, "session must be bytes, not text"),
        ({"model": {}}, "open.model: name is missing"),
        ({"model": {"name": "", "revision": "r", "digest": bytes(32)}}, "name must not be empty"),
        ({"model": {"name": "a\nb", "revision": "r", "digest": bytes(32)}}, "name has characters"),
        ({"model": {"name": "m" * 201, "revision": "r", "digest": bytes(32)}}, "at most 200 characters"),
        ({"model": {"name": "m", "revision": "r", "digest": bytes(31)}}, "digest must have 32 bytes"),
        ({"start": 20}, "span 20:20 holds no block"),
        ({"start": 21}, "span 21:20 holds no block"),
        ({"start": -1}, "start must be between 0 and 1024"),
        ({"start": False}, "start must be an integer, not a boolean"),
        ({"end": 1025}, "end must be between 0 and 1024"),
        ({"dtype": ""}, "dtype must not be empty"),
        ({"codecs": []}, "codecs must hold 0"),
        ({"codecs": [1]}, "codecs must hold 0"),
        ({"codecs": [0, 256]}, "codecs must hold integers between 0 and 255"),
        ({"codecs": [0] * 17}, "codecs must have at most 16 items"),
        ({"codecs": [3, 0]}, "codecs must hold 2 where it holds 3 or 6"),
        ({"rows": 0}, "rows must be between 1 and 256"),
        ({"max_tokens": 0}, "max_tokens must be between 1"),
        ({"max_tokens": 2.5}, "max_tokens must be an integer, not a number"),
        ({"public_tokens": -1}, "public_tokens must be between 0"),
        ({"public_tokens": True}, "public_tokens must be an integer, not a boolean"),
        ({"predecessor": "12D3KooW"}, "not that of an Ed25519 key"),
        ({"predecessor": "0OIl"}, "not base58"),
        ({"predecessor": "1" * 65}, "at most 64 characters"),
        ({"successor": []}, "successor must be a map, not a list"),
        ({"successor": successor(addrs=["/ip4/1.2.3.4"] * 17)}, "at most 16 items"),
        ({"successor": successor(addrs=["1.2.3.4:80"])}, "must hold multiaddrs"),
        ({"successor": successor(addrs=["/dns/ä"])}, "must hold multiaddrs"),
        ({"successor": successor(addrs=["/" + "a" * 256])}, "printable text of up to 256"),
        ({"successor": successor(addrs=["/a\x1b[2J"])}, "printable text"),
        ({"successor": successor(peer=None)}, "peer must be text, not nil"),
        ({"successor": successor(session=b"")}, "session must have 16 bytes"),
    ],
)
def test_an_open_that_breaks_a_rule(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        said(OPEN, **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": -1}, "step must be between 0"),
        ({"step": 2**53}, "step must be between 0"),
        ({"step": "1"}, "step must be an integer, not text"),
        ({"position": 2**24 - 1}, "position must be between 0 and 16777214"),
        ({"keep": 3}, "keep must be between 0 and 2"),
        ({"keep": -1}, "keep must be between 0 and 2"),
        ({"tensor": None}, "tensor must be a map, not nil"),
        ({"tensor": tensor(dtype="float64")}, "dtype must be one of float32, bfloat16, float16"),
        ({"tensor": tensor(dtype="bfloat16")}, "bfloat16 of shape .1, 2, 4. takes 16 bytes, but the body has 32"),
        ({"tensor": tensor(codec=7)}, "codec 7 was not agreed on; 0 to 6 are known here"),
        ({"tensor": tensor(codec=2)}, "takes fewer than 32 bytes and some, but the body has 32"),
        ({"tensor": tensor(codec=2, shape=[1, 2, 5])}, "the body is no coded tensor: "),
        ({"tensor": tensor(codec=4, shape=[256, 65_536, 131_072])}, "is more than 67108864 bytes when decoded"),
        ({"tensor": tensor(codec=True)}, "codec must be an integer"),
        ({"tensor": tensor(shape=[2, 4])}, "3 dimensions, not 2"),
        ({"tensor": tensor(shape=[1, 1, 2, 4])}, "at most 3 items"),
        ({"tensor": tensor(shape=[0, 2, 4])}, "1 to 256 rows, not 0"),
        ({"tensor": tensor(shape=[257, 2, 4])}, "1 to 256 rows, not 257"),
        ({"tensor": tensor(shape=[1, 0, 4])}, "1 to 65536 tokens, not 0"),
        ({"tensor": tensor(shape=[1, 65_537, 4])}, "1 to 65536 tokens, not 65537"),
        ({"tensor": tensor(shape=[1, 2, 0])}, "hidden size above 0"),
        ({"tensor": tensor(shape=[1, -2, -4])}, "integers between 0"),
        ({"tensor": tensor(shape=[256, 65_536, 131_072])}, "takes 8796093022208 bytes, but the body has 32"),
        ({"tensor": tensor(shape=[1.0, 2.0, 4.0])}, "integers between 0"),
        ({"trace": [[0, 1, 0, 0]] * 65}, "trace must have at most 64 items"),
        ({"trace": [[0, 1, 0]]}, "lists of at least four"),
        ({"trace": [{}]}, "lists of at least four"),
        ({"trace": [[0, 1, 0, -1]]}, "out of bounds"),
        ({"trace": [[0, 1, 0, 3_600_000_001]]}, "out of bounds"),
        ({"trace": [[0, 1, 0, 1.5]]}, "out of bounds"),
        ({"trace": [[1, 1, 0, 0]]}, "span 1:1, which is none"),
        ({"trace": [[1, 1025, 0, 0]]}, "span 1:1025, which is none"),
        ({"segments": 2}, "segments must be a list"),
        ({"segments": []}, "segments has 0 tokens, the step 2"),
        ({"segments": [1]}, "segments has 1 tokens, the step 2"),
        ({"segments": [1, 1, 1]}, "segments has 3 tokens, the step 2"),
        ({"segments": [2, 0]}, "segments must hold integers of at least 1"),
        ({"segments": [3, -1]}, "segments must hold integers of at least 1"),
        ({"segments": [1, True]}, "segments must hold integers of at least 1"),
        ({"segments": [1, 1.0]}, "segments must hold integers of at least 1"),
        ({"segments": [1] * 1025}, "not msgpack within the limits"),
    ],
)
def test_a_step_that_breaks_a_rule(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        said(STEP, **changes)


def test_a_body_must_be_as_long_as_the_shape_says() -> None:
    for length in (0, 31, 33):
        with pytest.raises(ProtocolViolation, match=f"takes 32 bytes, but the body has {length}"):
            said(STEP, bytes(length))


def test_an_output_may_be_empty_and_a_step_may_not() -> None:
    empty = TensorHeader("float32", (1, 0, 4))
    assert said(Output(0, 0, 30, empty)) == Output(0, 0, 30, empty)
    with pytest.raises(ProtocolViolation, match="1 to 65536 tokens, not 0"):
        said(Step(0, 0, 0, empty))


def test_an_output_always_has_a_next_block() -> None:
    for block in (0, 1025):
        with pytest.raises(ProtocolViolation, match="next_block must be between 1 and 1024"):
            said(OUTPUT, next_block=block)


@pytest.mark.parametrize(
    ("message", "changes", "reason"),
    [
        (REFUSED, {"code": ""}, "code must not be empty"),
        (REFUSED, {"code": "c" * 33}, "code must have at most 32"),
        (REFUSED, {"message": "m" * 513}, "message must have at most 512 characters, not 513"),
        (REFUSED, {"hint": b"h"}, "hint must be text, not bytes"),
        (REFUSED, {"retry_after_seconds": -1}, "retry_after_seconds must be between 0 and 3600"),
        (REFUSED, {"retry_after_seconds": 1e9}, "retry_after_seconds must be between 0 and 3600"),
        (REFUSED, {"retry_after_seconds": True}, "retry_after_seconds must be a number"),
        (BREAK, {"step": -1}, "step must be between"),
        (BREAK, {"peer": "nobody"}, "peer id"),
        (BREAK, {"retry_after_seconds": -1}, "retry_after_seconds must be between 0 and 3600"),
        (Ping(1), {"nonce": -1}, "nonce must be between"),
        (Ping(1), {"nonce": None}, "nonce must be an integer, not nil"),
    ],
)
def test_other_messages_that_break_a_rule(message: Message, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        said(message, **changes)


def test_a_break_may_say_when_to_come_again() -> None:
    busy = Break("peer-busy", "No room.", retry_after_seconds=4.5)
    assert parse(only_frame(whole(encode(busy)))) == busy
    assert said(busy, retry_after_seconds=...) == Break("peer-busy", "No room.")
    assert "retry_after_seconds" not in BREAK.to_map(), "what has no time is what older peers send"


def test_only_tensors_have_a_body() -> None:
    with pytest.raises(ProtocolViolation, match="ping: it has a body of 1 bytes and must have none"):
        said(Ping(1), b"x")


def test_reasons_are_cleaned_when_said_and_when_heard() -> None:
    nasty = "\x1b[31mred\x1b[0m\n" + "x" * 2_000
    for message in (Refused("peer-busy", nasty, nasty), Break("peer-lost", nasty, nasty)):
        heard = parse(only_frame(whole(encode(message))))
        assert isinstance(heard, Refused | Break)
        assert heard.message == heard.hint
        assert heard.message.startswith("[31mred [0m xxx")
        assert len(heard.message) == limits.MAX_REASON_CHARS
    heard = said(BREAK, message="a\x07\u202eb")
    assert isinstance(heard, Break)
    assert heard.message == "a b"


def test_a_body_of_the_wrong_length_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="a step was given 31 body bytes"):
        encode(STEP, bytes(31))
    with pytest.raises(ValueError, match="a ping was given 1 body bytes"):
        encode(Ping(1), b"x")
