"""What a swarm serves at one moment, as plain data for screens and programs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from swarmnode.protocols.records import ModelId, ServerRecord

from .client.servers import confirm_servers
from .discovery.directory import Directory
from .net.network import Network
from .routes import Coverage, coverage, missing_blocks

__all__ = ["ModelStatus", "ServerStatus", "SwarmStatus", "look_round", "sum_up"]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server of a model.

    Attributes:
        confirmed: it answered for itself just now; else its record is all there is.
        relayed: it says that others reach it through relays only, unless they punch through.
        quantisation: in what its weights are kept, if not as numbers of its dtype; its answers differ a little then.
        adapters: those that sessions on it may choose, as `name@digest`.
    """

    peer: str
    public_name: str
    start: int
    end: int
    state: str
    dtype: str
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    cache_tokens_left: int
    confirmed: bool
    addrs: tuple[str, ...]
    relayed: bool = False
    quantisation: str = "none"
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model, told from others of its name by revision and digest.

    Attributes:
        available: confirmed servers that are online cover every block.
        coverage: runs of blocks with the same confirmed, online servers.
        gaps: runs `(start, end)` that none of these holds.
        servers: all that announce themselves, by first block.
    """

    model: ModelId
    num_blocks: int
    available: bool
    coverage: tuple[Coverage, ...]
    gaps: tuple[tuple[int, int], ...]
    servers: tuple[ServerStatus, ...]


@dataclass(frozen=True, slots=True)
class SwarmStatus:
    """What one node sees of its swarm.

    Attributes:
        peer: the node that looked.
        connected: peers it has a connection to.
    """

    peer: str
    connected: tuple[str, ...]
    models: tuple[ModelStatus, ...]


async def look_round(network: Network, directory: Directory) -> SwarmStatus:
    """Find all models and ask all their servers. Takes up to seconds; who does not answer is shown as unconfirmed."""
    announced = await directory.find_models()
    models: dict[tuple[ModelId, int], ModelStatus] = {}
    for name in sorted({model.name for model, _ in announced}):
        records = {record.peer: record for record in await directory.find_servers(name, None)}
        confirmed = {record.peer: record for record in await confirm_servers(directory, list(records.values()))}
        records.update(confirmed)
        for kind in {(record.model, record.num_blocks) for record in records.values()}:
            models[kind] = sum_up(*kind, records.values(), confirmed)
    ordered = sorted(models, key=lambda kind: (kind[0].name, kind[0].revision, kind[0].digest))
    return SwarmStatus(network.peer, tuple(sorted(network.connected)), tuple(models[kind] for kind in ordered))


def sum_up(model: ModelId, num_blocks: int, records: Iterable[ServerRecord], confirmed: Collection[str]) -> ModelStatus:
    """The status of one model from its servers' records; `confirmed` are the peers that answered for themselves."""
    own = sorted(
        (record for record in records if record.model == model and record.num_blocks == num_blocks),
        key=lambda record: (record.start, record.end, record.peer),
    )
    live = [record for record in own if record.state == "online" and record.peer in confirmed]
    gaps = missing_blocks(live, num_blocks)
    return ModelStatus(
        model=model,
        num_blocks=num_blocks,
        available=not gaps,
        coverage=coverage(live, num_blocks),
        gaps=gaps,
        servers=tuple(
            ServerStatus(
                peer=record.peer,
                public_name=record.public_name,
                start=record.start,
                end=record.end,
                state=record.state,
                dtype=record.dtype,
                decode_tokens_per_second=record.decode_tokens_per_second,
                prefill_tokens_per_second=record.prefill_tokens_per_second,
                cache_tokens_left=record.cache_tokens_left,
                confirmed=record.peer in confirmed,
                addrs=tuple(record.addrs),
                relayed=record.relayed,
                quantisation=record.quantisation,
                adapters=tuple(map(str, record.adapters)),
            )
            for record in own
        ),
    )
