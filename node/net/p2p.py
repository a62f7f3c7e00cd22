"""All that we use of py-libp2p, and the only file that imports it; what its import sets up is undone here.

Read this before moving to another version of it: whatever is named here must still be there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import trio
from libp2p import new_host
from libp2p.abc import IListener, IMuxedConn, IMuxedStream, INetStream, ITransport
from libp2p.connection_types import ConnectionType
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.host import basic_host
from libp2p.host.autonat.pb.autonat_pb2 import Message as AutoNatMessage
from libp2p.host.exceptions import StreamFailure
from libp2p.identity.identify import identify
from libp2p.kad_dht import peer_routing, routing_table
from libp2p.kad_dht import utils as kad_utils
from libp2p.kad_dht.common import PROTOCOL_ID as KADEMLIA
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.stream.net_stream import NetStream, StreamState
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.relay.circuit_v2.pb import HolePunch, HopMessage, StopMessage
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamEOF, MuxedStreamReset
from multiaddr import Multiaddr

from swarmnode.errors import ProtocolViolation
from swarmnode.protocols.peers import check_peer

__all__ = [
    "ID",
    "KADEMLIA",
    "NOISE",
    "AutoNatMessage",
    "ConnectionConfig",
    "ConnectionType",
    "DHTMode",
    "HolePunch",
    "HopMessage",
    "IListener",
    "IMuxedConn",
    "IMuxedStream",
    "INetStream",
    "ITransport",
    "KadDHT",
    "MuxedConnUnavailable",
    "MuxedStreamEOF",
    "MuxedStreamReset",
    "NetStream",
    "NoiseTransport",
    "PeerInfo",
    "StopMessage",
    "StreamFailure",
    "StreamState",
    "Swarm",
    "create_new_key_pair",
    "create_noise_key_pair",
    "id_of",
    "new_host",
    "note_identified",
    "peer_of",
    "peer_routing",
]

# Importing py-libp2p sets up logging of its own. Its warnings are everyday life, its errors come as ours.
if "LIBP2P_DEBUG" not in os.environ:
    logging.getLogger("libp2p").handlers[:] = [logging.NullHandler()]
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    logging.getLogger("multiaddr").setLevel(logging.WARNING)
# It logs by `logging.debug(…)`, which gives the root logger a handler of its own.
swarm_connection.logging = logging.getLogger("libp2p.network.connection")

# Kademlia's answers carry the signed addresses of twenty peers, mostly the same again: each is verified once.
kad_utils.consume_envelope = lru_cache(maxsize=4096)(kad_utils.consume_envelope)


async def _stays(bucket: routing_table.KBucket, peer_id: ID) -> bool:
    """Its own dials and pings the oldest peer of a full bucket for each newcomer, in the midst of a question.

    A full bucket is split instead; who is dead is taken out when it is asked something.
    """
    await trio.lowlevel.checkpoint()
    return True


routing_table.KBucket._ping_peer = _stays

MAX_LISTEN_ADDRS = 32
"""Of what a peer says of itself, so much is noted."""
_take_identify = basic_host.update_peerstore_from_identify
_identify_addr = identify._remote_address_to_multiaddr


def note_identified(peer_store: Any, note: Callable[[str, str | None, tuple[str, ...]], None]) -> None:
    """Have `note` called whenever a peer has said who it is: with the peer, where it sees us, and where it listens."""
    peer_store.swarmnode_note = note


async def _with_note(peer_store: Any, peer_id: ID, message: Any) -> None:
    """Its own throws away where the other end sees us, and mixes where it listens with what others say of it."""
    await _take_identify(peer_store, peer_id, message)
    note, peer = getattr(peer_store, "swarmnode_note", None), peer_of(peer_id)
    if note is not None and peer is not None:
        observed = _addr_text(message.observed_addr)
        listens = [_addr_text(data) for data in message.listen_addrs[:MAX_LISTEN_ADDRS]]
        note(peer, observed, tuple(addr for addr in listens if addr is not None))


def _addr_text(data: bytes) -> str | None:
    try:
        return str(Multiaddr(data)) if data else None
    except Exception:  # noqa: BLE001 - foreign code fed by a peer: it may raise anything
        return None


def _as_seen(remote: Any) -> Multiaddr | None:
    """Its own takes every connection for TCP."""
    return Multiaddr(remote.multiaddr) if hasattr(remote, "multiaddr") else _identify_addr(remote)


basic_host.update_peerstore_from_identify = _with_note
identify._remote_address_to_multiaddr = _as_seen

id_of = lru_cache(maxsize=4096)(ID.from_base58)  # decoding takes longer than all else when a connection is looked up


@lru_cache(maxsize=4096)
def peer_of(peer_id: ID) -> str | None:
    """Its text form; None for a peer with another kind of key than ours."""
    try:
        return check_peer(peer_id.to_base58())
    except ProtocolViolation:
        return None
