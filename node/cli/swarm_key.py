"""`swarmnode swarm-key new`: make the key of a private swarm, and say what to do with it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

from swarmnode.errors import BadInput
from swarmnode.node.membership import create_swarm_key

from .call import Call
from .events import SwarmKey

__all__ = ["run"]

DEFAULT_FILE: Final = Path("swarm.key")


def run(call: Call) -> None:
    """Make a key; never in place of another."""
    if call.settings.verb is None:
        raise BadInput("swarm-key needs to be told what to do.", hint="To make a key: swarmnode swarm-key new FILE")
    path = call.settings.swarm_key or DEFAULT_FILE
    create_swarm_key(path)
    call.voice.say(SwarmKey(file=str(path)))
    call.voice.note(
        "copy it to every machine of the swarm, in a way that shows it to nobody else: who has it is a member"
    )
    call.voice.note(f"then start every node with: --swarm-key {shlex.quote(str(path))}")
