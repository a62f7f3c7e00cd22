"""The bytes of this version stay what they are, and the page shows those very bytes."""

from __future__ import annotations

import re

import pytest
import torch

from codec import reference
from support import golden
from support.golden import DIRECTORY_EXAMPLES, EXAMPLES, GATE_EXAMPLES, SESSION_EXAMPLES
from support.said import only_frame
from swarmnode._native import codec_decode_into
from swarmnode.protocols import directory, gate, limits, messages, store
from swarmnode.protocols.records import open_record
from swarmnode.protocols.swarm_key import read_key_file
from swarmnode.protocols.tensors import EXACT_CODECS

PAGE = golden.PAGE.read_text()
GOLDEN = {path.stem: bytes.fromhex(path.read_text()) for path in sorted(golden.FOLDER.glob("*.hex"))}


def test_there_is_an_example_of_every_message() -> None:
    assert {type(example.message) for example in SESSION_EXAMPLES} == set(messages.Message.__args__)
    assert {type(example.message) for example in DIRECTORY_EXAMPLES} | {directory.Refused} == set(
        directory.DirectoryMessage.__args__
    )
    assert {type(example.message) for example in GATE_EXAMPLES} == set(gate.GateMessage.__args__)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_what_is_written_is_golden(example: golden.Example) -> None:
    assert example.data.hex() == GOLDEN[example.name].hex()


@pytest.mark.parametrize("example", SESSION_EXAMPLES, ids=lambda example: example.name)
def test_golden_bytes_of_a_session_are_read(example: golden.SessionExample) -> None:
    frame = only_frame(GOLDEN[example.name])
    assert messages.parse(frame) == example.message
    assert frame.body == example.body


@pytest.mark.parametrize("example", DIRECTORY_EXAMPLES, ids=lambda example: example.name)
def test_golden_bytes_of_the_directory_are_read(example: golden.DirectoryExample) -> None:
    assert directory.parse(only_frame(GOLDEN[example.name])) == example.message


@pytest.mark.parametrize("example", GATE_EXAMPLES, ids=lambda example: example.name)
def test_golden_bytes_of_the_gate_are_read(example: golden.GateExample) -> None:
    assert gate.parse(only_frame(GOLDEN[example.name])) == example.message


@pytest.mark.parametrize(("name", "codec", "group"), golden.BLOBS)
def test_golden_blobs_are_those_of_the_reference_too(name: str, codec: int, group: int) -> None:
    values = torch.frombuffer(bytearray(golden.BLOB_VALUES), dtype=torch.float32)
    matrix = values.reshape(golden.BLOB_ROWS, golden.BLOB_COLS)
    golden_bytes = GOLDEN[f"blob_{name}"]
    assert reference.encode(matrix, codec, group=group, zstd_level=0) == golden_bytes
    decoded = bytearray(len(golden.BLOB_VALUES))
    codec_decode_into(golden_bytes, decoded, out_dtype=0, rows=golden.BLOB_ROWS, cols=golden.BLOB_COLS)
    expected = reference.decode(golden_bytes)
    assert torch.equal(torch.frombuffer(decoded, dtype=torch.float32).reshape(matrix.shape), expected)
    assert torch.equal(expected, matrix) == (codec in EXACT_CODECS)


def test_the_golden_swarm_key_is_read() -> None:
    assert read_key_file(GOLDEN["swarm_key"]).secret == golden.SWARM_KEY.secret


def test_the_golden_record_is_read() -> None:
    assert open_record(GOLDEN["record"]) == golden.RECORD
    assert open_record(GOLDEN["record_adapters"]) == golden.ADAPTERS_RECORD


def test_the_page_shows_the_golden_bytes_and_no_others() -> None:
    shown = golden.page_examples(PAGE)
    assert shown == GOLDEN
    assert set(shown) == {example.name for example in EXAMPLES}


def test_the_page_names_every_bound_with_its_value() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([-0-9,.]+) \|", PAGE, re.MULTILINE)
    shown = {name: _number(text) for name, text in rows}
    bounds = {name: value for name, value in vars(limits).items() if name.isupper()}
    kept = {name: getattr(store, name) for name in store.__all__ if name.isupper()}
    assert shown == bounds | kept


def _number(text: str) -> float:
    """A number of the page, with commas for thousands; whole ones exactly."""
    plain = text.replace(",", "")
    return float(plain) if "." in plain else int(plain)
