"""The library's surface: every name is there, and looking at it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

from swarmnode.node import library


def test_every_public_name_is_there() -> None:
    for name in library.__all__:
        assert getattr(library, name).__name__ == name


def test_importing_it_loads_no_torch_and_no_libp2p() -> None:
    program = (
        "import sys, swarmnode.node.library\n"
        "print([name for name in ('torch', 'transformers', 'libp2p', 'numpy') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
