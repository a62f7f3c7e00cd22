"""What makes a swarm private on this machine: the file of its key, made and read, and lists of peers to let in or not.

Knows no network. The key's format and what it proves are in `swarmnode.protocols.swarm_key`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from swarmnode.errors import BadInput, ProtocolViolation
from swarmnode.protocols import limits
from swarmnode.protocols.peers import check_peer
from swarmnode.protocols.swarm_key import SwarmKey, key_file, read_key_file

from .net.guests import Guests

__all__ = ["create_swarm_key", "load_swarm_key", "read_guests", "read_preferred"]

MAX_LIST_BYTES: Final = 1 << 20
"""A file of peer ids; some eighteen thousand fit."""


def create_swarm_key(path: Path) -> None:
    """Put a new key at `path`, mode 0600, whole or not at all. Raises `BadInput`, also when a file is there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(key_file(SwarmKey(secrets.token_bytes(limits.SWARM_KEY_BYTES))))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(draft, path)  # unlike a rename it never replaces
                return
        finally:
            os.unlink(draft)
    except OSError as error:
        raise BadInput(
            f"The swarm key {path} cannot be created: {(error.strerror or 'unknown reason').lower()}.",
            hint="Name a file in a folder that you can write to.",
        ) from error
    raise BadInput(
        f"There is a file {path} already; a key is never overwritten.",
        hint="Members of a running swarm hold it perhaps: name another file, or move that one away.",
    )


def load_swarm_key(path: Path) -> SwarmKey:
    """The key in a file. Raises `BadInput`; no error text holds any of the file's content."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(limits.MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise BadInput(
            f"The swarm key {path} cannot be read: {(error.strerror or 'unknown reason').lower()}.",
            hint="Copy it from another member of the swarm, or make one with `swarmnode swarm-key new`.",
        ) from error
    if mode & 0o007:  # a group may share it: often that is how a service gets it
        raise BadInput(
            f"The swarm key {path} can be used by everybody on this machine (mode {mode & 0o777:04o}).",
            hint=f"Run: chmod 600 {path}",
        )
    try:
        return read_key_file(data)
    except ValueError as error:
        raise BadInput(
            f"{path} is no swarm key: {error}.",
            hint="Copy it anew from another member of the swarm, or make one with `swarmnode swarm-key new`.",
        ) from None


def read_guests(allow: Sequence[str], deny: Sequence[str]) -> Guests:
    """The rule from lists whose items are peer ids, or files with one to a line. Raises `BadInput`."""
    allowed = frozenset(_peers("--allow-peer", allow)) if allow else None
    return Guests(allowed, frozenset(_peers("--deny-peer", deny)))


def read_preferred(prefer: Sequence[str]) -> frozenset[str]:
    """The peers that go first, from a list like that. Raises `BadInput`."""
    return frozenset(_peers("--prefer-peer", prefer))


def _peers(flag: str, items: Sequence[str]) -> Iterator[str]:
    for item in items:
        try:
            yield check_peer(item)
        except ProtocolViolation:
            yield from _peers_in(flag, Path(item).expanduser())


def _peers_in(flag: str, path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
    except OSError as error:
        raise BadInput(
            f"{flag}: {path} is neither a peer id nor a file that can be read"
            f" ({(error.strerror or 'unknown reason').lower()}).",
            hint="A peer id looks like 12D3Koo…; a file has one to a line, and what follows a # is a comment.",
        ) from error
    if len(data) > MAX_LIST_BYTES:
        raise BadInput(f"{flag}: {path} is longer than {MAX_LIST_BYTES} bytes.", hint="Is it a list of peer ids?")
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        if words := line.partition("#")[0].strip():
            try:
                yield check_peer(words)
            except ProtocolViolation as violation:
                raise BadInput(
                    f"{flag}: line {number} of {path} is no peer id. {violation.message}",
                    hint="A peer id looks like 12D3Koo…; a file has one to a line, and what follows a # is a comment.",
                ) from None
