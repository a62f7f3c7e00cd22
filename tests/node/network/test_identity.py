"""A node's key: made once, for its owner's eyes only, the same peer id for ever."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from swarmnode.errors import BadIdentity
from swarmnode.node.identity import (
    claim_identity,
    create_identity,
    identity_from_seed,
    load_identity,
    state_folder,
)


def test_created_once_with_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "node.key"
    first = load_identity(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_identity(path) == first
    assert [each.name for each in path.parent.iterdir()] == ["node.key"]
    assert first != create_identity()
    assert identity_from_seed(first.seed) == first
    assert first.seed.hex() not in repr(first)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", bytes(68), bytes([8, 1, 0x12, 64]) + bytes(range(64)), bytes(5000)]
)
def test_what_is_no_key_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(BadIdentity, match=r"node\.key does not hold"):
        load_identity(path)
    assert path.read_bytes() == content


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    load_identity(path)
    path.chmod(0o644)
    with pytest.raises(BadIdentity, match="0644") as refused:
        load_identity(path)
    assert "chmod 600" in refused.value.hint


def test_a_folder_or_an_impossible_place(tmp_path: Path) -> None:
    with pytest.raises(BadIdentity, match="cannot be read"):
        load_identity(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadIdentity, match=r"cannot be (read|created)"):
        load_identity(tmp_path / "file" / "node.key")


def test_two_nodes_of_one_user_have_two_identities(tmp_path: Path) -> None:
    with claim_identity() as first:
        with claim_identity() as second:
            assert first.peer != second.peer
        with claim_identity() as again:
            assert again == second
        named = state_folder() / "node.key"
        with pytest.raises(BadIdentity, match="in use"), claim_identity(named):
            pass
    with claim_identity() as later:
        assert later == first
