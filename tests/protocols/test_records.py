"""A record proves who wrote it, and that is all it proves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import said
from support.said import server_key, server_record, signed, signed_server
from swarmnode.errors import BadInput, ProtocolViolation
from swarmnode.protocols import limits
from swarmnode.protocols.peers import peer_from_public_key
from swarmnode.protocols.records import SIGNED_DOMAIN, ModelId, ServerRecord, open_record, sign_record
from swarmnode.protocols.wire import pack, unpack_map

RECORD = server_record(1)


def forged(number: int = 1, /, **changes: object) -> bytes:
    """A record with a true signature over whatever is in it; `name=...` leaves a field out."""
    values = {**unpack_map(signed(RECORD)[64:], "record"), **changes}
    payload = pack({name: value for name, value in values.items() if value is not ...})
    return server_key(number).sign(SIGNED_DOMAIN + payload).signature + payload


@st.composite
def records(draw: st.DrawFn) -> ServerRecord:
    num_blocks = draw(st.integers(1, limits.MAX_BLOCKS))
    start, end = draw(said.spans(num_blocks))
    speeds = st.floats(0, limits.MAX_TOKENS_PER_SECOND)
    return server_record(
        1,
        sequence=draw(st.integers(0, limits.MAX_SEQUENCE)),
        lifetime_seconds=draw(st.floats(limits.MIN_LIFETIME_SECONDS, limits.MAX_LIFETIME_SECONDS)),
        model=draw(said.models),
        num_blocks=num_blocks,
        start=start,
        end=end,
        dtype=draw(said.words),
        quantisation=draw(said.words),
        state=draw(st.sampled_from(["joining", "online", "draining"])),
        cache_tokens_left=draw(st.integers(0, limits.MAX_CACHE_TOKENS)),
        decode_tokens_per_second=draw(speeds),
        prefill_tokens_per_second=draw(speeds),
        addrs=tuple(draw(said.addrs)),
        public_name=draw(said.printable)[: limits.MAX_PUBLIC_NAME_CHARS],
        relayed=draw(st.booleans()),
        adapters=tuple(draw(st.lists(said.adapter_ids, max_size=4, unique_by=lambda each: each.name))),
        codecs=(0, *draw(st.lists(st.sampled_from([1, 2, 4, 5, 77]), max_size=5))),
    )


@given(records())
def test_round_trip(record: ServerRecord) -> None:
    assert open_record(signed(record)) == record


def test_whole_numbers_may_stand_for_fractions_and_unknown_fields_are_ignored() -> None:
    record = open_record(forged(lifetime_seconds=30, decode_tokens_per_second=4, region="eu", taps=[1, {"a": b""}]))
    assert record == server_record(1, lifetime_seconds=30.0, decode_tokens_per_second=4.0)


def test_a_record_without_the_mark_is_of_a_server_that_can_be_dialled() -> None:
    assert open_record(forged(relayed=None)) == RECORD
    assert open_record(forged(relayed=True)).relayed
    with pytest.raises(ProtocolViolation, match="relayed"):
        open_record(forged(relayed=1))


def test_a_record_that_names_no_codecs_is_of_a_server_that_reads_raw_tensors_alone() -> None:
    assert open_record(forged(codecs=None)).codecs == RECORD.codecs == (0,)
    assert b"codecs" not in signed(RECORD), "older readers need not know the field"
    assert open_record(forged(codecs=[2, 200, 0])).codecs == (2, 200, 0), "what we do not know is the client's to match"


def test_a_record_names_its_adapters_once_and_within_bounds() -> None:
    named = {"name": "poet", "digest": bytes(16)}
    assert open_record(forged(adapters=None)) == open_record(forged(adapters=[])) == RECORD
    assert b"adapters" not in signed(RECORD), "older readers need not know the field"
    assert [str(each) for each in open_record(forged(adapters=[named])).adapters] == ["poet@00000000"]
    for adapters, refused in (
        ([named, named], "different names"),
        ([{"name": f"a{number}", "digest": bytes(16)} for number in range(17)], "at most 16"),
        ([named | {"name": "a" * 33}], "at most 32"),
        ([named | {"name": "-a"}], "letters, digits"),
        ([named | {"name": "a@b"}], "letters, digits"),
        ([named | {"digest": bytes(32)}], "16 bytes"),
        (["poet"], "must hold maps"),
    ):
        with pytest.raises(ProtocolViolation, match=refused):
            open_record(forged(adapters=adapters))


def test_the_most_adapters_fit_a_record_beside_the_rest() -> None:
    most = [{"name": f"{number:032}", "digest": bytes(16)} for number in range(limits.MAX_ADAPTERS)]
    assert len(forged(adapters=most)) < limits.MAX_RECORD_BYTES // 2


@given(st.integers(0), st.integers(1, 255))
def test_one_changed_byte_is_refused(place: int, change: int) -> None:
    data = bytearray(signed_server())
    data[place % len(data)] ^= change
    with pytest.raises(ProtocolViolation):
        open_record(bytes(data))


def test_a_record_of_another_peer_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="not signed by the peer it speaks of"):
        open_record(forged(2))
    with pytest.raises(BadInput, match="not signed by the peer"):
        signed(RECORD, 2)


def test_a_signature_of_the_key_over_something_else_is_refused() -> None:
    payload = signed(RECORD)[64:]
    for domain in (b"", b"swarmnode/record/2\x00", b"noise-libp2p-static-key:"):
        with pytest.raises(ProtocolViolation, match="not signed"):
            open_record(server_key(1).sign(domain + payload).signature + payload)


def test_a_key_of_small_order_signs_nothing() -> None:
    """With the neutral point as key, and as R, and S = 0, the plain equation of Ed25519 holds for every message."""
    neutral = bytes([1]) + bytes(31)
    payload = pack({**unpack_map(signed(RECORD)[64:], "record"), "peer": peer_from_public_key(neutral)})
    with pytest.raises(ProtocolViolation, match="not signed"):
        open_record(neutral + bytes(32) + payload)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peer": ...}, "peer is missing"),
        ({"peer": "12D3KooW"}, "not that of an Ed25519 key"),
        ({"sequence": -1}, "sequence must be between"),
        ({"sequence": 2**62 + 1}, "sequence must be between"),
        ({"lifetime_seconds": 60.5}, "lifetime_seconds must be between 1 and 60"),
        ({"lifetime_seconds": 0}, "lifetime_seconds must be between 1 and 60"),
        ({"lifetime_seconds": float("nan")}, "not finite"),
        ({"model": {"name": "m"}}, "record.model: revision is missing"),
        ({"num_blocks": 1025}, "num_blocks must be between 1 and 1024"),
        ({"num_blocks": 19}, "span 10:20 does not lie in 19 blocks"),
        ({"start": 20}, "span 20:20 holds no block"),
        ({"dtype": 32}, "dtype must be text"),
        ({"state": "sleeping"}, "state must be one of joining, online, draining"),
        ({"cache_tokens_left": -1}, "cache_tokens_left must be between"),
        ({"decode_tokens_per_second": float("inf")}, "not finite"),
        ({"prefill_tokens_per_second": -1.0}, "prefill_tokens_per_second must be between"),
        ({"addrs": ["/ip4/1.2.3.4/tcp/1"] * 17}, "at most 16 items"),
        ({"protocols": ["p" * 65]}, "printable text of up to 64"),
        ({"public_name": "a\x1b[31mb"}, "public_name has characters"),
        ({"public_name": "a" * 65}, "public_name must have at most 64"),
        ({"codecs": [1]}, "codecs must hold 0"),
        ({"codecs": "0"}, "codecs must be a list"),
        ({"codecs": [0] * 17}, "codecs must have at most 16 items"),
    ],
)
def test_a_record_that_breaks_a_rule(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        open_record(forged(**changes))


def test_a_record_is_neither_empty_nor_long() -> None:
    for length in (0, 64, limits.MAX_RECORD_BYTES + 1):
        with pytest.raises(ProtocolViolation, match=f"must have 65 to 4096 bytes, not {length}"):
            open_record(bytes(length))
    with pytest.raises(ProtocolViolation, match="not 4"):
        open_record(forged(addrs=["/dns/" + "a" * 250] * 16))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"public_name": "x" * 65}, "public_name must have at most 64"),
        ({"public_name": "caf\udce9"}, "cannot be written as UTF-8"),
        ({"model": ModelId("a\tb", "", bytes(32))}, "name has characters"),
        ({"lifetime_seconds": 90.0}, "between 1 and 60"),
    ],
)
def test_our_own_record_is_held_to_the_same_rules(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        sign_record(server_record(1, **changes), lambda data: server_key(1).sign(data).signature)
