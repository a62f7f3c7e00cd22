"""Rates: decode and prefill apart, for the whole span, calm about hiccups."""

from __future__ import annotations

import pytest

from swarmnode.node.server.rates import Pace, Rates


def test_learns_decode_and_prefill_apart() -> None:
    rates = Rates()
    rates.observe(1, 0.1, 1.0)
    rates.observe(100, 0.5, 1.0)
    rates.observe(8, 0.001, 1.0)  # neither
    rates.observe(1, 0.0, 1.0)  # a clock that stood still
    assert rates.decode_tokens_per_second == pytest.approx(10.0)
    assert rates.prefill_tokens_per_second == pytest.approx(200.0)


def test_half_the_span_in_half_the_time_is_the_same_rate() -> None:
    rates = Rates()
    rates.observe(1, 0.1, 1.0)
    rates.observe(1, 0.05, 0.5)
    assert rates.decode_tokens_per_second == pytest.approx(10.0)


def test_one_hiccup_hardly_shows_and_a_real_change_soon_does() -> None:
    rates = Rates()
    rates.observe(1, 0.1, 1.0)
    rates.observe(1, 10.0, 1.0)
    assert rates.decode_tokens_per_second > 8.9
    for _ in range(50):
        rates.observe(1, 0.01, 1.0)
    assert rates.decode_tokens_per_second == pytest.approx(100.0, rel=0.01)


def test_what_a_batch_and_a_token_cost_is_known_when_batches_are_all_of_a_size_again() -> None:
    pace = Pace()
    assert pace.seconds(5, 1) == 0.0
    pace.observe(1, 0.051)
    assert pace.seconds(0, 1) == pytest.approx(0.0)  # nobody can tell yet
    for tokens in [32] * 200:
        pace.observe(tokens, 0.05 + 0.001 * tokens)
    assert pace.seconds(0, 1) == pytest.approx(0.05)
    assert pace.seconds(64, 2) == pytest.approx(0.164)
