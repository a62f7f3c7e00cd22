"""A node's Ed25519 key: made, kept in a file that only its owner can read, and turned into a libp2p peer id.

The file holds libp2p's own encoding of a private key, so other libp2p programs can read it. Knows no network.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from nacl.signing import SigningKey

from swarmnode.errors import BadIdentity
from swarmnode.protocols.peers import peer_from_public_key

__all__ = [
    "Identity",
    "claim_identity",
    "create_identity",
    "identity_from_seed",
    "load_identity",
    "state_folder",
]

# protobuf of libp2p's crypto.proto: field 1 (key type) = 1 (Ed25519), field 2 (data) = this many bytes.
_PRIVATE_PREFIX = bytes([0x08, 0x01, 0x12, 64])
_FILE_BYTES = len(_PRIVATE_PREFIX) + 64
MAX_CLAIMS = 1000
"""How many nodes of one user take their identity from the state folder at the same time."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A peer key.

    Attributes:
        peer: the peer id in text form (`12D3Koo…`).
        seed: the 32 secret bytes.
    """

    peer: str
    seed: bytes = field(repr=False)

    @property
    def public_key(self) -> bytes:
        """The 32 public bytes."""
        return bytes(SigningKey(self.seed).verify_key)

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature of `data`, 64 bytes."""
        return SigningKey(self.seed).sign(data).signature


def identity_from_seed(seed: bytes) -> Identity:
    """The identity of 32 secret bytes."""
    return Identity(peer_from_public_key(bytes(SigningKey(seed).verify_key)), seed)


def create_identity() -> Identity:
    """A fresh identity that is kept nowhere."""
    return identity_from_seed(secrets.token_bytes(32))


def state_folder() -> Path:
    """Where identities live when nobody says otherwise: `$XDG_STATE_HOME/swarmnode`."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "swarmnode"


def load_identity(path: Path) -> Identity:
    """The identity kept at `path`; made there, mode 0600, when there is none. Raises `BadIdentity`."""
    with suppress(FileNotFoundError):
        return _read(path)
    _create(path)
    return _read(path)


@contextmanager
def claim_identity(path: Path | None = None) -> Iterator[Identity]:
    """The identity at `path`, held so that no other node on this machine uses it at the same time.

    With no path, the first one of the state folder that no living node holds: the first node of a user always
    has the same peer id, a second one beside it another. Raises `BadIdentity`.
    """
    if path is not None:
        identity = load_identity(path)
        lock = _try_lock(path)
        if lock is None:
            raise BadIdentity(
                f"The identity {path} is in use by another node on this machine.",
                hint="Stop that node, or give this one a file of its own with --identity.",
            )
    else:
        for number in range(1, MAX_CLAIMS + 1):
            path = state_folder() / ("node.key" if number == 1 else f"node-{number}.key")
            identity = load_identity(path)
            if (lock := _try_lock(path)) is not None:
                break
        else:
            raise BadIdentity(
                f"All {MAX_CLAIMS} identities in {state_folder()} are in use.",
                hint="Give this node a file of its own with --identity.",
            )
    try:
        yield identity
    finally:
        os.close(lock)


def _try_lock(path: Path) -> int | None:
    """A file descriptor that holds the lock on `path` until it is closed, or None when somebody else holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _read(path: Path) -> Identity:
    """The identity at `path`. Raises `FileNotFoundError`, `BadIdentity`."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_FILE_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    if mode & 0o077:
        raise BadIdentity(
            f"The identity {path} can be read by others (mode {mode & 0o777:04o}).",
            hint=f"Run: chmod 600 {path}",
        )
    if len(data) != _FILE_BYTES or not data.startswith(_PRIVATE_PREFIX):
        raise _no_key(path)
    identity = identity_from_seed(data[4:36])
    if identity.public_key != data[36:]:
        raise _no_key(path)
    return identity


def _create(path: Path) -> None:
    """Put a new key at `path`, whole or not at all; one that appears there meanwhile wins."""
    identity = create_identity()
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_PRIVATE_PREFIX + identity.seed + identity.public_key)
                file.flush()
                os.fsync(file.fileno())
            # A link, not a rename: of two nodes that start together, the second must not replace the first's key.
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            os.unlink(draft)
    except OSError as error:
        raise BadIdentity(
            f"The identity {path} cannot be created: {error.strerror}.",
            hint="Name a file in a folder that you can write to with --identity.",
        ) from error


def _unreadable(path: Path, error: OSError) -> BadIdentity:
    return BadIdentity(
        f"The identity {path} cannot be read: {error.strerror}.",
        hint="Check who owns the file, or name another one with --identity.",
    )


def _no_key(path: Path) -> BadIdentity:
    return BadIdentity(
        f"The identity {path} does not hold an Ed25519 key.",
        hint="Move the file away to have a new key made, or name another one with --identity.",
    )
