"""The activation codec at work: the names of the ways to compress that a user may choose from. Light to import.

`choice.py` decides in which codec a message is sent; `on_device.py` makes its bytes on a CUDA device.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

__all__ = ["COMPRESSIONS", "Compression"]

Compression = Literal["auto", "raw", "lossless", "h8", "h6", "fp8", "h4"]
COMPRESSIONS: Final[tuple[str, ...]] = get_args(Compression)
