"""The bootstrap command as others meet it: a process that they join by, and that relays unless told not to."""

from __future__ import annotations

import pytest

from support.programs import bootstrap
from swarmnode.node.identity import create_identity
from swarmnode.node.net.host import open_host
from swarmnode.node.net.nat.messages import HOP
from swarmnode.node.net.reaching import ReachingNetwork


@pytest.mark.parametrize(("flags", "relays"), [((), True), (("--no-relay",), False)])
async def test_it_relays_unless_told_not_to(flags: tuple[str, ...], relays: bool) -> None:
    program, address = bootstrap(*flags)
    with program:
        async with open_host(create_identity(), listen=()) as guest:
            assert isinstance(guest, ReachingNetwork)
            peer = await guest.connect(address)
            assert guest.speakers(HOP) == ((peer,) if relays else ())
