"""How the source is laid out: rooms named through swarmnode, one job said at the head of each file, none too long."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("node", "models", "protocols")
SOURCES = sorted(
    path for folder in (*ROOMS, "native/python/swarmnode", "examples") for path in (ROOT / folder).glob("**/*.py")
)
MOST_LINES = 450


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=identify)
def test_a_source_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file says its one job in its first line"
    assert len(text.splitlines()) <= MOST_LINES, "a file this long wants to be two"
    for node in ast.walk(tree):
        # `import node` works from the repository's root by accident, and gives every class a second identity.
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & set(ROOMS)
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] not in ROOMS
