"""Block ranges as people write them: `20:40` is blocks 20 to 39. Knows no torch and no model."""

from __future__ import annotations

import re

from swarmnode.errors import BadRange

__all__ = ["parse_blocks"]

MAX_DIGITS = 6
_RANGE = re.compile(rf"\s*(\d{{0,{MAX_DIGITS}}})\s*:\s*(\d{{0,{MAX_DIGITS}}})\s*", re.ASCII)


def parse_blocks(text: str, num_blocks: int) -> tuple[int, int]:
    """`"20:40"` as `(20, 40)`, for a model of `num_blocks` blocks.

    The range is half-open. A side left out means the model's own end: `20:` is from block 20 to the last one.

    Raises:
        BadRange: the text is no range, the range is empty, or the model does not have these blocks.
    """
    whole = f"this model has blocks 0:{num_blocks}"
    match = _RANGE.fullmatch(text)
    if match is None:
        raise BadRange(
            f"{text!r} is not a block range; {whole}.",
            hint="Write START:END, where END is not included: 0:10 is the first ten blocks.",
        )
    start = int(match[1] or 0)
    end = int(match[2] or num_blocks)
    if end > num_blocks:
        raise BadRange(
            f"Blocks {start}:{end} do not exist; {whole}.",
            hint=f"Choose a range inside 0:{num_blocks}.",
            span=(start, end),
        )
    if start >= end:
        raise BadRange(
            f"The block range {start}:{end} is empty; {whole}.",
            hint="END must be greater than START, and END is not included: 0:10 is the first ten blocks.",
            span=(start, end),
        )
    return start, end
