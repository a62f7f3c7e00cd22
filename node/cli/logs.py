"""What the libraries underneath may say: nothing by default, everything with `--debug`."""

from __future__ import annotations

import logging
import os
import sys
import warnings

__all__ = ["set_up_logs"]


def set_up_logs(*, debug: bool) -> None:
    """Settle logging, warnings and the libraries' own progress bars; call before they are imported."""
    # Our bars show the same; and tokenizers' warning about forks is about a thing that we do not do.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        warnings.simplefilter("ignore")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.CRITICAL)
    logging.getLogger("swarmnode").setLevel(logging.DEBUG if debug else logging.WARNING)
