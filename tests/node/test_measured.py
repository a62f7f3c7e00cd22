"""What was measured is known at the next start; a file that is broken, foreign or not to be written costs nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmnode.node.identity import state_folder
from swarmnode.node.links import Link
from swarmnode.node.measured import (
    MAX_FILE_BYTES,
    MAX_SPANS,
    VERSION,
    Measured,
    Network,
    SpanKey,
    SpanRates,
    network_of,
)

KEY = SpanKey("a CPU, 2 threads, torch 2", "ab" * 32, "float32", "none", 10)
RATES = SpanRates(20.0, 300.0)
NETWORK = Network(0.05, 8e7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "measured.json"


def test_it_is_there_at_the_next_start(path: Path) -> None:
    Measured(path).keep(KEY, RATES)
    Measured(path).keep_network(NETWORK)
    known = Measured(path)
    assert known.rates(KEY) == RATES
    assert known.network == NETWORK
    assert sorted(path.parent.iterdir()) == [path]  # no draft is left


def test_it_lies_in_the_state_folder() -> None:
    Measured().keep(KEY, RATES)
    assert (state_folder() / "measured.json").is_file()


@pytest.mark.parametrize(
    "changed", [{"hardware": "another"}, {"model": "cd" * 32}, {"dtype": "bfloat16"}, {"quant": "int8"}]
)
def test_another_machine_model_or_format_is_another_thing(path: Path, changed: dict[str, str]) -> None:
    known = Measured(path)
    known.keep(KEY, RATES)
    other = replace(KEY, **changed)  # type: ignore[arg-type]
    assert known.rates(other) is known.expected(other) is None


def test_spans_of_other_length_are_expected_to_be_as_quick_block_for_block(path: Path) -> None:
    known = Measured(path)
    known.keep(KEY, RATES)
    assert known.rates(replace(KEY, blocks=5)) is None
    assert known.expected(replace(KEY, blocks=5)) == SpanRates(40.0, 600.0)
    known.keep(replace(KEY, blocks=4), SpanRates(1.0, 1.0))
    assert known.expected(replace(KEY, blocks=2)) == SpanRates(2.0, 2.0)  # the nearest in length
    assert known.expected(KEY) == RATES


def test_it_stays_small_and_forgets_what_was_not_used_for_longest(path: Path) -> None:
    known = Measured(path)
    for blocks in range(1, MAX_SPANS + 10):
        known.keep(replace(KEY, blocks=blocks), RATES)
        known.keep(replace(KEY, blocks=1), RATES)
    again = Measured(path)
    assert again.rates(replace(KEY, blocks=1)) == RATES
    assert again.rates(replace(KEY, blocks=2)) is None
    assert path.stat().st_size < MAX_FILE_BYTES


def wrong(**changed: object) -> str:
    """The file with a single span, but for these fields of it."""
    rates = {"decode_tokens_per_second": 1.0, "prefill_tokens_per_second": 1.0}
    of = {"hardware": "h", "model": "m", "dtype": "d", "quant": "q", "blocks": 1}
    span = {
        "of": {name: changed.get(name, value) for name, value in of.items()},
        "rates": {name: changed.get(name, value) for name, value in rates.items()},
    }
    return json.dumps({"version": changed.get("version", VERSION), "spans": [span], "network": changed.get("network")})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        json.dumps({"version": VERSION}),
        wrong(version=VERSION - 1),
        wrong(blocks=0),
        wrong(blocks="1"),
        wrong(blocks=True),
        wrong(decode_tokens_per_second=float("nan")),
        wrong(prefill_tokens_per_second=-1),
        wrong(prefill_tokens_per_second="1"),
        wrong(network={"round_trip_seconds": 0, "bits_per_second": None}),
        wrong(network=3),
        wrong(hardware="h" * MAX_FILE_BYTES),
    ],
)
def test_a_file_that_makes_no_sense_counts_as_empty(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    known = Measured(path)
    assert known.rates(SpanKey("h", "m", "d", "q", 1)) is None
    assert known.network is None
    known.keep(KEY, RATES)
    assert Measured(path).rates(KEY) == RATES


@given(st.binary(max_size=300))
def test_garbage_raises_nothing(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("garbage") / "measured.json"
    path.write_bytes(data)
    assert Measured(path).network is None


def test_the_file_of_this_test_is_good_where_nothing_is_changed(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(wrong(network={"round_trip_seconds": 0.1, "bits_per_second": 5}))
    known = Measured(path)
    assert known.rates(SpanKey("h", "m", "d", "q", 1)) == SpanRates(1.0, 1.0)
    assert known.network == Network(0.1, 5.0)


def test_a_place_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    known = Measured(tmp_path / "file" / "measured.json")
    known.keep(KEY, RATES)
    assert known.rates(KEY) == RATES


def test_the_network_is_written_down_when_it_has_changed(path: Path) -> None:
    known = Measured(path)
    known.keep_network(NETWORK)
    known.keep_network(replace(NETWORK, round_trip_seconds=0.051))
    assert Measured(path).network == NETWORK
    known.keep_network(Network(0.2, None))  # nothing was carried this time
    assert Measured(path).network == Network(0.2, 8e7)


def test_links_tell_what_the_network_is_like() -> None:
    far = Link(round_trip_seconds=0.08, at_most_bits_per_second=1e6)
    busy = Link(round_trip_seconds=0.02, bits_per_second=5e7, at_most_bits_per_second=9e7)
    near = Link(near=True, round_trip_seconds=1e-4, bits_per_second=1e10)
    assert network_of([]) is network_of([near, Link()]) is None
    assert network_of([far, near]) == Network(0.08, None)
    assert network_of([far, busy, near]) == Network(0.05, 5e7)
