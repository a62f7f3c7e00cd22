"""Names: the protocols we speak and the model a peer speaks about. Knows nothing of what they carry."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GATE", "INFO", "RECORDS", "SESSION", "SPOKEN", "TRAINING", "ModelId"]

SESSION = "/swarmnode/session/1"
"""Hidden states through a chain of servers: `messages.py`."""

RECORDS = "/swarmnode/records/1"
"""Announce and find server records: `directory.py`."""

INFO = "/swarmnode/info/1"
"""Ask a server for its own record: `directory.py`."""

TRAINING = "/swarmnode/training/1"
"""Whole rows through some blocks without a cache, and gradients back: `training.py`. Not every server speaks it."""

GATE = "/swarmnode/gate/1"
"""Prove to hold the private swarm's key, before anything else: `gate.py`. No part of what a record lists."""

SPOKEN = (SESSION, RECORDS, INFO)
"""What every server's record lists."""


@dataclass(frozen=True, slots=True)
class ModelId:
    """Which weights exactly.

    Attributes:
        name: hub id (`org/model`), or the name of a local folder or file.
        revision: the hub's commit, or a fingerprint of local weights.
        digest: 32 bytes over the config and the weights index; two fine-tunes of one model differ in it.
    """

    name: str
    revision: str
    digest: bytes
