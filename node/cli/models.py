"""`swarmnode models`: the certified families. Reads the generated table, nothing heavy."""

from __future__ import annotations

from swarmnode.models.families import all_certificates

from .call import Call
from .events import Family, Models

__all__ = ["run"]


def run(call: Call) -> None:
    """Tell the whole table."""
    families = tuple(
        Family(
            family=entry.family,
            certified=entry.certified,
            reason=entry.reason,
            max_difference=entry.max_difference,
            truncatable=entry.truncatable,
        )
        for entry in all_certificates()
    )
    call.voice.say(Models(families=families))
