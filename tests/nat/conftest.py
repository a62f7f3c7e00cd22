"""The tests in this folder need network namespaces; where there are none they say why and are skipped."""

from __future__ import annotations

import pytest

from swarmnode.node.bench.natlab import why_no_lab


@pytest.fixture(scope="session", autouse=True)
def _lab() -> None:
    if (why := why_no_lab()) is not None:
        pytest.skip(why)
