"""Server records: what a server says of itself, signed by its peer key. Knows no clock and no store.

A record is a 64-byte Ed25519 signature and the msgpack map it signs. The verifying key is in the peer id inside, so a
record proves by itself who wrote it; it proves nothing of what it says. It carries how long it may be believed, never
a time of day: machines with wrong clocks read it alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from swarmnode.errors import BadInput, ProtocolViolation

from . import limits
from .adapters import AdapterId, adapter_to_map, read_adapters
from .common import model_to_map, read_addrs, read_model, read_span
from .ids import ModelId
from .peers import public_key_of
from .tensors import CODEC_RAW, read_codecs
from .wire import Fields, pack, unpack_map

__all__ = ["NOT_QUANTISED", "SIGNED_DOMAIN", "ModelId", "ServerRecord", "ServerState", "open_record", "sign_record"]

SIGNED_DOMAIN = b"swarmnode/record/1\x00"
"""Goes before the payload when it is signed, so that no other signature of the key can pass for a record's."""

NOT_QUANTISED = "none"
"""What a record says of weights that are numbers of its dtype."""

ServerState = Literal["joining", "online", "draining"]
"""Loading its blocks and not yet answering; taking sessions; finishing those it has."""


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """One server at one moment.

    Attributes:
        peer: the server's peer id, text form; its key signs the record.
        sequence: above that of every record of this server before.
        lifetime_seconds: how long after signing the record may be believed, 1 to 60.
        model: the weights it serves; `num_blocks` is how many blocks they have, `start:end` the ones it runs.
        dtype: of its weights and hidden states. quantisation: "none", or how its weights are stored.
        cache_tokens_left: tokens of KV cache it could still promise.
        decode_tokens_per_second, prefill_tokens_per_second: measured by itself; 0 when unknown.
        addrs: multiaddrs it believes it can be dialled at, without the peer id.
        protocols: the protocol ids it speaks.
        codecs: ids it reads.
        public_name: what its owner calls it, may be empty.
        relayed: others reach it through relays only, unless they punch through to it.
        adapters: those that a session on it may choose; no two of one name.
    """

    peer: str
    sequence: int
    lifetime_seconds: float
    model: ModelId
    num_blocks: int
    start: int
    end: int
    dtype: str
    quantisation: str
    state: ServerState
    cache_tokens_left: int
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    addrs: tuple[str, ...]
    protocols: tuple[str, ...]
    public_name: str = ""
    codecs: tuple[int, ...] = (CODEC_RAW,)
    relayed: bool = False
    adapters: tuple[AdapterId, ...] = ()


def sign_record(record: ServerRecord, sign: Callable[[bytes], bytes]) -> bytes:
    """The record's bytes.

    Args:
        sign: makes the 64-byte Ed25519 signature of some bytes with the key of `record.peer`.

    Raises:
        BadInput: a value is outside what peers accept, for instance the public name; or the key is another's.
    """
    try:
        payload = pack(_to_map(record))
    except UnicodeEncodeError:  # an argument with bytes that are not UTF-8
        raise BadInput("This server's record holds text that cannot be written as UTF-8.") from None
    data = sign(SIGNED_DOMAIN + payload) + payload
    try:
        open_record(data)
    except ProtocolViolation as violation:
        raise BadInput(f"No peer would accept this server's record. {violation.message}") from None
    return data


def open_record(data: bytes) -> ServerRecord:
    """The record in these bytes, once its form, its bounds and its signature have been checked.

    Raises:
        ProtocolViolation: any of them is wrong; the message says which.
    """
    if not limits.SIGNATURE_BYTES < len(data) <= limits.MAX_RECORD_BYTES:
        raise ProtocolViolation(
            f"A record must have {limits.SIGNATURE_BYTES + 1} to {limits.MAX_RECORD_BYTES} bytes, not {len(data)}."
        )
    signature, payload = data[: limits.SIGNATURE_BYTES], data[limits.SIGNATURE_BYTES :]
    record = _read(Fields("record", unpack_map(payload, "record")))
    try:
        VerifyKey(public_key_of(record.peer)).verify(SIGNED_DOMAIN + payload, signature)
    except CryptoError:
        raise ProtocolViolation("A record is not signed by the peer it speaks of.") from None
    return record


def _to_map(record: ServerRecord) -> dict[str, object]:
    return {
        "peer": record.peer,
        "sequence": record.sequence,
        "lifetime_seconds": record.lifetime_seconds,
        "model": model_to_map(record.model),
        "num_blocks": record.num_blocks,
        "start": record.start,
        "end": record.end,
        "dtype": record.dtype,
        "quantisation": record.quantisation,
        "state": record.state,
        "cache_tokens_left": record.cache_tokens_left,
        "decode_tokens_per_second": record.decode_tokens_per_second,
        "prefill_tokens_per_second": record.prefill_tokens_per_second,
        "addrs": record.addrs,
        "protocols": record.protocols,
        "public_name": record.public_name,
        **({"codecs": record.codecs} if record.codecs != (CODEC_RAW,) else {}),
        **({"relayed": True} if record.relayed else {}),
        **({"adapters": tuple(map(adapter_to_map, record.adapters))} if record.adapters else {}),
    }


def _read(fields: Fields) -> ServerRecord:
    start, end = read_span(fields)
    num_blocks = fields.integer("num_blocks", limits.MAX_BLOCKS, least=1)
    if end > num_blocks:
        raise fields.wrong(f"the span {start}:{end} does not lie in {num_blocks} blocks.")
    state = fields.text("state", limits.MAX_WORD_CHARS)
    if state not in get_args(ServerState):
        raise fields.wrong(f"state must be one of {', '.join(get_args(ServerState))}.")
    fastest = limits.MAX_TOKENS_PER_SECOND
    return ServerRecord(
        peer=fields.text("peer", limits.MAX_PEER_CHARS),
        sequence=fields.integer("sequence", limits.MAX_SEQUENCE),
        lifetime_seconds=fields.number(
            "lifetime_seconds", limits.MAX_LIFETIME_SECONDS, least=limits.MIN_LIFETIME_SECONDS
        ),
        model=read_model(fields),
        num_blocks=num_blocks,
        start=start,
        end=end,
        dtype=fields.text("dtype", limits.MAX_WORD_CHARS, least_chars=1),
        quantisation=fields.text("quantisation", limits.MAX_WORD_CHARS),
        state=cast(ServerState, state),
        cache_tokens_left=fields.integer("cache_tokens_left", limits.MAX_CACHE_TOKENS),
        decode_tokens_per_second=fields.number("decode_tokens_per_second", fastest),
        prefill_tokens_per_second=fields.number("prefill_tokens_per_second", fastest),
        addrs=read_addrs(fields),
        protocols=fields.texts("protocols", limits.MAX_PROTOCOLS, limits.MAX_PROTOCOL_CHARS),
        public_name=fields.text("public_name", limits.MAX_PUBLIC_NAME_CHARS),
        codecs=read_codecs(fields) if fields.has("codecs") else (CODEC_RAW,),
        relayed=fields.flag("relayed") if fields.has("relayed") else False,
        adapters=read_adapters(fields) if fields.has("adapters") else (),
    )
