"""Forty clients on two servers with a quarter of the cache they want: every text right, nothing left behind.

`SWARMNODE_SOAK_SECONDS=600` makes it as long as a release wants it; `scripts/bench soak` prints the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

SECONDS = float(os.environ.get("SWARMNODE_SOAK_SECONDS", "30"))  # read now: fixtures clear the environment
CLIENTS = 40

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 400)]


def soak(*arguments: str) -> dict[str, Any]:
    """The figures. In a process of its own, because it forks."""
    command = [sys.executable, "-m", "swarmnode.node.bench", "soak", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_every_text_is_right_every_refusal_honest_and_nothing_is_left() -> None:
    figures = soak("--seconds", str(SECONDS), "--clients", str(CLIENTS), "--kill-seconds", str(min(45.0, SECONDS / 2)))
    assert figures["faults"] == []
    assert figures["clients"] == CLIENTS
    assert figures["killed_processes"] >= 1
    assert figures["cache_tokens"] <= figures["wanted_tokens"] / 4 + 1
    assert figures["answers"] >= 1
    assert figures["refused"]["times"] >= 1, "a quarter of the cache is too little"
    assert sum(figures["cancelled"].values()) >= 1
