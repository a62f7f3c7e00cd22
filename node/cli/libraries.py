"""What the libraries underneath find set when they are imported, and what they may say: little, all with `--debug`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Final

__all__ = ["set_up_libraries"]

# Our bars show the same as the hub's. Threads of OpenMP that wait must sleep: spinning, as they would, they take the
# cores from the peers on this machine and from our own event loop (docs/DECISIONS.md has the figures).
_FOUND: Final = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
_QUIET: Final = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error"}


def set_up_libraries(*, debug: bool) -> None:
    """Settle environment, logging and warnings; call before heavy imports. The user's own stay."""
    for name, value in {**_FOUND, **({} if debug else _QUIET)}.items():
        os.environ.setdefault(name, value)
    if not debug:
        warnings.simplefilter("ignore")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.CRITICAL)
    logging.getLogger("swarmnode").setLevel(logging.DEBUG if debug else logging.WARNING)
