"""Every error swarmnode raises, sorted by who is at fault. Knows nothing else of the program.

    SwarmnodeError
    ├── AskedWrong            the person or program that asked        exit 2
    │   ├── BadInput              a flag, a file or a value makes no sense
    │   ├── BadRange              block range empty or outside the model
    │   ├── PromptTooLong         more tokens than the model's context
    │   ├── ModelNotFound         no such model, revision or file
    │   ├── ModelGated            the hub wants a licence accepted or a token
    │   └── FamilyNotCertified    a model type whose cut was not shown to be exact
    ├── MachineFault          this machine                            exit 3
    │   ├── PortInUse             somebody else listens there
    │   ├── BadIdentity           the key file cannot be read or is not a key
    │   ├── DiskFull              no room for a download or a conversion
    │   ├── CheckpointBroken      a weights or config file is corrupt, truncated or missing
    │   ├── HubUnreachable        the model hub does not answer
    │   └── OutOfMemory           the device has no room for it
    ├── SwarmFault            the swarm as a whole, as it is now      exit 4
    │   ├── NoPeers               nobody answers
    │   ├── BlocksMissing         no live server holds some of the blocks
    │   ├── AdapterMissing        no server has the adapter that was asked for
    │   └── ModelMismatch         the swarm serves another revision or other weights
    └── PeerFault             one other peer                          exit 5
        ├── PeerUnreachable       it cannot be dialled
        ├── PeerLost              it went away or fell silent
        ├── PeerRefused           it answered no, with a reason
        │   ├── PeerBusy              … for now: try again later
        │   └── ReplayNeeded          … its cache cannot go back that far: send the session again
        └── ProtocolViolation     it broke the protocol

The `code` of a class is what `--json` prints and what travels between peers; a test holds that no two are alike.
`message` says what is wrong in one sentence, `hint` what to do next in another.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AdapterMissing",
    "AskedWrong",
    "BadIdentity",
    "BadInput",
    "BadRange",
    "BlocksMissing",
    "CheckpointBroken",
    "DiskFull",
    "FamilyNotCertified",
    "HubUnreachable",
    "MachineFault",
    "ModelGated",
    "ModelMismatch",
    "ModelNotFound",
    "NoPeers",
    "OutOfMemory",
    "PeerBusy",
    "PeerFault",
    "PeerLost",
    "PeerRefused",
    "PeerUnreachable",
    "PortInUse",
    "PromptTooLong",
    "ProtocolViolation",
    "ReplayNeeded",
    "SwarmFault",
    "SwarmnodeError",
]


class SwarmnodeError(Exception):
    """What every error of swarmnode is.

    Args:
        message: what is wrong, one sentence, naming the thing.
        hint: what to do next, one sentence; may be empty.
        peer: the peer id (text form) the error is about, if any.
        span: the blocks `(start, end)` the error is about, if any.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        peer: str | None = None,
        span: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.peer = peer
        self.span = span


class AskedWrong(SwarmnodeError):
    """The person or program that asked is at fault."""

    code = "asked-wrong"
    exit_code = 2


class BadInput(AskedWrong):
    """A flag, a file or a value makes no sense."""

    code = "bad-input"


class BadRange(AskedWrong):
    """A block range is empty or outside the model."""

    code = "bad-range"


class PromptTooLong(AskedWrong):
    """The prompt, or prompt and answer, do not fit the model's context."""

    code = "prompt-too-long"


class ModelNotFound(AskedWrong):
    """There is no such model, revision or file."""

    code = "model-not-found"


class ModelGated(AskedWrong):
    """The hub wants a licence accepted or a token."""

    code = "model-gated"


class FamilyNotCertified(AskedWrong):
    """Cutting this model type was not shown to be exact, so it is not served."""

    code = "family-not-certified"


class MachineFault(SwarmnodeError):
    """This machine cannot do it."""

    code = "machine-fault"
    exit_code = 3


class PortInUse(MachineFault):
    """Somebody else listens on the port."""

    code = "port-in-use"


class BadIdentity(MachineFault):
    """The key file cannot be read or is not a key."""

    code = "bad-identity"


class DiskFull(MachineFault):
    """There is no room left for a download or a conversion."""

    code = "disk-full"


class CheckpointBroken(MachineFault):
    """A weights or config file is corrupt, truncated or missing."""

    code = "checkpoint-broken"


class HubUnreachable(MachineFault):
    """The model hub does not answer."""

    code = "hub-unreachable"


class OutOfMemory(MachineFault):
    """The device has no room for it."""

    code = "out-of-memory"


class SwarmFault(SwarmnodeError):
    """The swarm as a whole cannot do it at the moment."""

    code = "swarm-fault"
    exit_code = 4


class NoPeers(SwarmFault):
    """Nobody answers."""

    code = "no-peers"


class BlocksMissing(SwarmFault):
    """No live server holds some of the blocks."""

    code = "blocks-missing"


class AdapterMissing(SwarmFault):
    """No server of the model has the adapter that was asked for."""

    code = "adapter-missing"


class ModelMismatch(SwarmFault):
    """The swarm serves another revision or other weights under this name."""

    code = "model-mismatch"


class PeerFault(SwarmnodeError):
    """One other peer is at fault; `peer` says which."""

    code = "peer-fault"
    exit_code = 5


class PeerUnreachable(PeerFault):
    """The peer cannot be dialled."""

    code = "peer-unreachable"


class PeerLost(PeerFault):
    """The peer went away or fell silent in the middle."""

    code = "peer-lost"


class PeerRefused(PeerFault):
    """The peer answered no and said why."""

    code = "peer-refused"


class PeerBusy(PeerRefused):
    """The peer has no room now; asking later may help.

    Args:
        retry_after_seconds: when, by what the peer says; None when it does not say.
    """

    code = "peer-busy"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        peer: str | None = None,
        span: tuple[int, int] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, peer=peer, span=span)
        self.retry_after_seconds = retry_after_seconds


class ReplayNeeded(PeerRefused):
    """The peer's cache cannot go back that far; the session must be sent again from position 0."""

    code = "replay-needed"


class ProtocolViolation(PeerFault):
    """The peer sent what the protocol does not allow."""

    code = "protocol-violation"
