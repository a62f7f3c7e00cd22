"""The peers of other implementations, built once and kept between runs; without their tools the tests are skipped.

From nothing each takes a minute or two: 69 s of one core in Go, 127 s in Rust, which is not optimised. What is built is
built again only when its source changes.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 1500


def built(name: str) -> str:
    """The program's path; skips when it cannot be built for want of a tool or of the network."""
    done = subprocess.run(
        [ROOT / "scripts" / "peers", name], capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing was said"]
        if any(sign in done.stderr for sign in ("could not compile", "vet:", "syntax error", "undefined:")):
            pytest.fail(f"the {name} peer does not compile:\n{done.stderr[-3000:]}")
        pytest.skip(f"the {name} peer cannot be built here: {said[-1]}")
    return done.stdout.strip()


@pytest.fixture(scope="session")
def go_peer() -> str:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    return built("go")


@pytest.fixture(scope="session")
def rust_peer() -> str:
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    return built("rust")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.in_turns(f"{name} peer")) for name in ("go", "rust")])
def peer(request: pytest.FixtureRequest) -> str:
    """A program that speaks libp2p as somebody else wrote it."""
    name: str = request.getfixturevalue(f"{request.param}_peer")
    return name
