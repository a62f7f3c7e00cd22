"""Importing swarmnode and asking for help loads nothing heavy. Counts modules, not time."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "libp2p", "huggingface_hub", "numpy", "trio", "msgpack", "nacl"}

# CPython itself brings about 60 modules with argparse and typing; a heavy library brings hundreds.
MOST_MODULES = 160

REPORT = "import sys; print(*sorted(sys.modules))"


def modules_after(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        f"import swarmnode; {REPORT}",
        f"import swarmnode, swarmnode.errors; dir(swarmnode); {REPORT}",
        "import contextlib\n"
        "from swarmnode.node.cli.main import main\n"
        f"with contextlib.suppress(SystemExit): main(['--help'])\n{REPORT}",
        "import contextlib\n"
        "from swarmnode.node.cli.main import main\n"
        f"with contextlib.suppress(SystemExit): main(['serve', '--help'])\n{REPORT}",
    ],
    ids=["import", "errors", "help", "serve-help"],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    loaded = modules_after(code)
    assert "swarmnode" in loaded
    assert not HEAVY & loaded
    assert len(loaded) < MOST_MODULES


def test_heavy_names_do_load_when_used() -> None:
    loaded = modules_after(f"import swarmnode; swarmnode.open_node; {REPORT}")
    assert "trio" in loaded
