"""In which codec a message goes: by size, link, what the session allows and what the user forces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmnode.errors import BadInput
from swarmnode.node.codec import COMPRESSIONS
from swarmnode.node.codec.choice import (
    FAST_BITS_PER_SECOND,
    PACKET_BYTES,
    as_compression,
    choose_codec,
    offered_codecs,
    send_codec,
)
from swarmnode.node.links import TELLING_BYTES, Link, LinkMeter
from swarmnode.protocols.tensors import (
    CODEC_H4,
    CODEC_H6,
    CODEC_H8,
    CODEC_LOSSLESS,
    CODEC_RAW,
    DTYPE_BYTES,
    EXACT_CODECS,
    KNOWN_CODECS,
    TensorHeader,
    common_codecs,
)

AUTO = offered_codecs("auto")
EXACT = offered_codecs("lossless")
PREFILL = TensorHeader("bfloat16", (1, 512, 2048))
TOKEN = TensorHeader("bfloat16", (1, 1, 2048))

tensors = st.builds(
    TensorHeader,
    st.sampled_from(sorted(DTYPE_BYTES)),
    st.tuples(st.just(1), st.integers(1, 1024), st.integers(1, 8192)),
)
rates = st.none() | st.floats(1e3, 1e12)
links = st.builds(Link, st.booleans(), rates, rates, st.none() | st.floats(1e-5, 10))
lists = st.lists(st.sampled_from(KNOWN_CODECS), unique=True).map(lambda codecs: tuple({*codecs, CODEC_RAW}))


@given(tensors, lists, links)
def test_only_what_is_allowed_is_chosen(tensor: TensorHeader, allowed: tuple[int, ...], link: Link) -> None:
    for compression in COMPRESSIONS:
        assert send_codec(as_compression(compression), tensor, allowed, link) in allowed


@given(tensors, lists)
def test_nothing_is_lost_on_one_machine_or_on_a_quick_link(tensor: TensorHeader, allowed: tuple[int, ...]) -> None:
    for link in (Link(near=True), Link(near=True, bits_per_second=1e6), Link(bits_per_second=FAST_BITS_PER_SECOND)):
        assert choose_codec(tensor, allowed, link) == CODEC_RAW


@given(tensors, links)
def test_who_wants_it_exact_gets_it_exact(tensor: TensorHeader, link: Link) -> None:
    for compression in COMPRESSIONS:
        assert send_codec(as_compression(compression), tensor, EXACT, link) in EXACT_CODECS


@pytest.mark.parametrize("link", [Link(), Link(bits_per_second=6.9e9), Link(round_trip_seconds=0.1)], ids=str)
def test_h8_below_seven_gigabits(link: Link) -> None:
    for tensor in (TOKEN, PREFILL):
        assert choose_codec(tensor, AUTO, link) == CODEC_H8


def test_what_fits_one_packet_goes_as_it_is() -> None:
    fits = TensorHeader("float32", (1, 1, PACKET_BYTES // 4))
    assert choose_codec(fits, AUTO, Link()) == CODEC_RAW
    assert choose_codec(TensorHeader("float32", (1, 1, PACKET_BYTES // 4 + 1)), AUTO, Link()) == CODEC_H8


def test_lossless_where_it_saves_time() -> None:
    assert choose_codec(PREFILL, EXACT, Link(bits_per_second=1e8)) == CODEC_LOSSLESS
    assert choose_codec(PREFILL, EXACT, Link(bits_per_second=6e9)) == CODEC_RAW
    # One token: a fixed price, and little to save.
    assert choose_codec(TOKEN, EXACT, Link(bits_per_second=1e8)) == CODEC_LOSSLESS
    assert choose_codec(TOKEN, EXACT, Link(bits_per_second=1e9)) == CODEC_RAW


def test_links_that_nobody_measured() -> None:
    lan, wan = Link(round_trip_seconds=0.001), Link(round_trip_seconds=0.02)
    assert choose_codec(TOKEN, EXACT, lan) == CODEC_RAW
    assert choose_codec(TOKEN, EXACT, wan) == choose_codec(TOKEN, EXACT, Link()) == CODEC_LOSSLESS
    # It took what we sent more slowly than a local network would.
    slow = Link(round_trip_seconds=0.001, at_most_bits_per_second=1e8)
    assert choose_codec(TOKEN, EXACT, slow) == CODEC_LOSSLESS
    # A buffer that swallows everything says nothing.
    assert choose_codec(TOKEN, AUTO, Link(at_most_bits_per_second=1e11)) == CODEC_H8


def test_the_clients_order_counts() -> None:
    assert choose_codec(PREFILL, (CODEC_H6, CODEC_H8, CODEC_RAW), Link()) == CODEC_H6
    assert choose_codec(PREFILL, (CODEC_RAW, CODEC_H8), Link()) == CODEC_RAW


def test_force_is_used_wherever_it_is_allowed() -> None:
    near = Link(near=True)
    assert send_codec("h6", TOKEN, offered_codecs("h6"), near) == CODEC_H6
    assert send_codec("raw", PREFILL, AUTO, Link()) == CODEC_RAW
    assert send_codec("h4", PREFILL, AUTO, Link()) == CODEC_H8
    assert send_codec("h4", PREFILL, EXACT, Link(bits_per_second=1e12)) == CODEC_RAW


def test_what_all_read_in_the_clients_order() -> None:
    assert common_codecs(AUTO, KNOWN_CODECS, KNOWN_CODECS) == AUTO
    assert common_codecs(AUTO, KNOWN_CODECS, (CODEC_RAW,)) == (CODEC_RAW,)
    assert common_codecs(AUTO, (CODEC_RAW, CODEC_LOSSLESS, 99)) == (CODEC_LOSSLESS, CODEC_RAW)
    # h6 and h4 fall back to h8, so they go with it.
    assert common_codecs((CODEC_H6, CODEC_H4, CODEC_H8, CODEC_RAW), (CODEC_RAW, CODEC_H6, CODEC_H4)) == (CODEC_RAW,)


def test_a_name_that_is_none() -> None:
    with pytest.raises(BadInput) as caught:
        as_compression("h16")
    assert caught.value.message == "There is no compression 'h16'."
    assert caught.value.hint == "Give one of auto, raw, lossless, h8, h6, fp8, h4."


def test_a_meter_learns_from_long_messages_and_pings() -> None:
    meter = LinkMeter()
    assert meter.link(Link(near=True)) == Link(near=True)
    meter.sent(TELLING_BYTES - 1, 1.0)
    meter.sent(TELLING_BYTES, 0.0)
    assert meter.link(Link()).at_most_bits_per_second is None
    meter.sent(TELLING_BYTES, 1.0)
    assert meter.link(Link()).at_most_bits_per_second == 8 * TELLING_BYTES
    meter.sent(TELLING_BYTES, 0.5)
    assert 8 * TELLING_BYTES < (meter.link(Link()).at_most_bits_per_second or 0) < 16 * TELLING_BYTES
    assert meter.link(Link(at_most_bits_per_second=5.0)).at_most_bits_per_second == 5.0
    assert (meter.link(Link(at_most_bits_per_second=1e12)).at_most_bits_per_second or 0) < 1e9
    for seconds in (0.03, 0.01, 0.5):
        meter.answered(seconds)
    assert meter.link(Link()).round_trip_seconds == 0.01
    assert meter.link(Link(round_trip_seconds=0.2)).round_trip_seconds == 0.2
