"""The key file and the lists of peers, as they lie on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmnode.errors import BadInput
from swarmnode.node.identity import create_identity
from swarmnode.node.membership import create_swarm_key, load_swarm_key, read_guests, read_preferred

ONE, OTHER, THIRD = (create_identity().peer for _ in range(3))


def test_a_key_that_everybody_can_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    create_swarm_key(path)
    secret = load_swarm_key(path).secret
    path.chmod(0o640)
    assert load_swarm_key(path).secret == secret
    path.chmod(0o644)
    with pytest.raises(BadInput, match=r"mode 0644") as caught:
        load_swarm_key(path)
    assert caught.value.hint == f"Run: chmod 600 {path}"


def test_two_keys_differ(tmp_path: Path) -> None:
    for name in "ab":
        create_swarm_key(tmp_path / name)
    assert load_swarm_key(tmp_path / "a").secret != load_swarm_key(tmp_path / "b").secret


def test_files_that_are_no_keys(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("hunter2hunter2\n")
    (tmp_path / "other").chmod(0o600)
    with pytest.raises(BadInput, match="first line is not") as caught:
        load_swarm_key(tmp_path / "other")
    assert "hunter2" not in caught.value.message + caught.value.hint
    with pytest.raises(BadInput, match="no such file"):
        load_swarm_key(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="is a directory"):
        load_swarm_key(tmp_path)
    with pytest.raises(BadInput, match=r"swarm\.key cannot be created"):
        create_swarm_key(tmp_path / "other" / "swarm.key")


def test_lists_of_peers_and_of_files(tmp_path: Path) -> None:
    (tmp_path / "friends").write_text(f"# ours\n{ONE}  # ann\n\n{OTHER}\n")
    guests = read_guests([str(tmp_path / "friends"), THIRD], [OTHER])
    assert guests.allowed == frozenset({ONE, OTHER, THIRD})
    assert guests.denied == {OTHER}
    assert read_preferred([str(tmp_path / "friends"), THIRD]) == {ONE, OTHER, THIRD}


def test_no_list_is_everybody_and_an_empty_one_nobody(tmp_path: Path) -> None:
    assert read_guests([], []).why_not(ONE) is None
    (tmp_path / "empty").write_text("# nobody yet\n")
    assert read_guests([str(tmp_path / "empty")], []).why_not(ONE) is not None


def test_lists_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--deny-peer: 12D3KooWnonsense is neither a peer id nor a file"):
        read_guests([], ["12D3KooWnonsense"])
    with pytest.raises(BadInput, match="--prefer-peer: 12D3KooWnonsense is neither"):
        read_preferred(["12D3KooWnonsense"])
    (tmp_path / "bad").write_bytes(ONE.encode() + b"\n\xff\xfe\n")
    with pytest.raises(BadInput, match=r"--allow-peer: line 2 of \S+ is no peer id"):
        read_guests([str(tmp_path / "bad")], [])
    (tmp_path / "huge").write_bytes(b"#" * (2 << 20))
    with pytest.raises(BadInput, match="is longer than"):
        read_guests([str(tmp_path / "huge")], [])
