"""Which adapter is meant by a name, of those that servers have."""

from __future__ import annotations

import pytest

from support.said import server_record
from swarmnode.errors import AdapterMissing, BadInput, BlocksMissing
from swarmnode.node.adapters import check_adapters, choose_adapter, parse_adapters
from swarmnode.node.routes import plan_route
from swarmnode.protocols.adapters import AdapterId
from swarmnode.protocols.records import ServerRecord

ONE, TWO, SQL = (AdapterId(name, bytes([byte]) * 16) for name, byte in (("poet", 1), ("poet", 2), ("sql", 3)))


def server(number: int, start: int, end: int, *adapters: AdapterId) -> ServerRecord:
    return server_record(number, num_blocks=4, start=start, end=end, state="online", adapters=adapters)


def test_a_name_is_enough_while_only_one_of_it_is_on_all_blocks() -> None:
    records = [server(1, 0, 4, ONE), server(2, 0, 3, TWO), server(3, 0, 4)]
    assert choose_adapter(records, "poet", 4) == ONE
    assert choose_adapter(records, "poet@02", 4) == TWO
    records.append(server(4, 3, 4, AdapterId("bard", TWO.digest)))
    with pytest.raises(BadInput, match="several adapters of this name: poet@01010101, poet@02020202"):
        choose_adapter(records, "poet", 4)
    assert choose_adapter(records, "poet@0101", 4) == ONE


def test_a_name_that_nobody_has_is_answered_with_those_there_are() -> None:
    with pytest.raises(AdapterMissing, match=r"'bard'\. There are none"):
        choose_adapter([server(1, 0, 4)], "bard", 4)
    with pytest.raises(AdapterMissing, match=r"'bard'\. There is sql@03030303"):
        choose_adapter([server(1, 0, 4, SQL)], "bard", 4)
    with pytest.raises(AdapterMissing, match=r"'poet@ff'\. There are poet@01010101, sql@03030303"):
        choose_adapter([server(1, 0, 4, SQL, ONE)], "poet@ff", 4)


def test_a_route_uses_only_servers_with_the_adapter_whatever_they_call_it() -> None:
    bard = AdapterId("bard", ONE.digest)
    records = [server(1, 0, 4, SQL), server(2, 0, 2, ONE), server(3, 2, 4, bard), server(4, 0, 4)]
    route = plan_route(records, 4, adapter=ONE)
    assert route.peers == (records[1].peer, records[2].peer)
    assert route.adapter == ONE
    assert len(plan_route(records, 4).hops) == 1
    with pytest.raises(BlocksMissing, match="Blocks 0:4 of 4 have no live server with adapter poet@02020202"):
        plan_route(records, 4, adapter=TWO)
    with pytest.raises(BlocksMissing, match="Blocks 2:4 of 4"):
        plan_route(records, 4, adapter=ONE, exclude={records[2].peer})


def test_what_is_to_be_offered_has_a_name_and_a_place() -> None:
    assert parse_adapters(["poet=./a b/c", "sql=org/lora=2"]) == {"poet": "./a b/c", "sql": "org/lora=2"}
    for given, refused in ((["poet"], "named and placed"), (["poet="], "named and placed"), (["a=b", "a=c"], "Two")):
        with pytest.raises(BadInput, match=refused):
            parse_adapters(given)
    for name in ("", "a" * 33, "-a", "ä", "a b", "a@b"):
        with pytest.raises(BadInput, match="cannot be an adapter's name"):
            check_adapters({name: "x"})
