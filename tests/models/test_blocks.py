"""Block ranges as people write them."""

from __future__ import annotations

import pytest

from swarmnode.errors import BadRange
from swarmnode.models.blocks import parse_blocks


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0:30", (0, 30)), ("20:30", (20, 30)), (" 4 : 5 ", (4, 5)), ("20:", (20, 30)), (":7", (0, 7)), (":", (0, 30))],
)
def test_reads_half_open_ranges(text: str, expected: tuple[int, int]) -> None:
    assert parse_blocks(text, 30) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("20:40", "Blocks 20:40 do not exist; this model has blocks 0:30."),
        ("5:5", "The block range 5:5 is empty; this model has blocks 0:30."),
        ("9:3", "The block range 9:3 is empty; this model has blocks 0:30."),
        ("30:", "The block range 30:30 is empty; this model has blocks 0:30."),
        ("ten", "'ten' is not a block range; this model has blocks 0:30."),
        ("1-4", "'1-4' is not a block range; this model has blocks 0:30."),
        ("-1:4", "'-1:4' is not a block range; this model has blocks 0:30."),
        ("٣:٤", "'٣:٤' is not a block range; this model has blocks 0:30."),
        ("", "'' is not a block range; this model has blocks 0:30."),
        ("1:2:3", "'1:2:3' is not a block range; this model has blocks 0:30."),
        ("0:" + "9" * 5000, "'0:" + "9" * 5000 + "' is not a block range; this model has blocks 0:30."),
    ],
)
def test_refuses_the_rest_naming_what_there_is(text: str, says: str) -> None:
    with pytest.raises(BadRange) as caught:
        parse_blocks(text, 30)
    assert caught.value.message == says
    assert caught.value.hint
