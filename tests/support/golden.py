"""The worked examples of docs/PROTOCOL.md: what they say, and their bytes as this version writes them.

    python tests/support/golden.py --write

writes tests/protocols/golden/*.hex and the examples in the page. Golden bytes are a promise to other implementations:
write them again only when the protocol has a new version, or a new example.
"""

from __future__ import annotations

import re
import struct
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from nacl.signing import SigningKey

from swarmnode._native import codec_encode
from swarmnode.protocols import directory, gate, messages
from swarmnode.protocols.adapters import AdapterId
from swarmnode.protocols.directory import Announce, Announced, DirectoryMessage, Find, Found, GetInfo, Info, Verdict
from swarmnode.protocols.frames import FrameReader
from swarmnode.protocols.gate import Answer, GateMessage, Hello, Proof, Shut
from swarmnode.protocols.ids import SPOKEN, ModelId
from swarmnode.protocols.keys import INDEX_KEY, bucket_keys, home_key, model_key
from swarmnode.protocols.messages import (
    Attach,
    Attached,
    Break,
    Close,
    Gradients,
    HopTrace,
    Message,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Prompts,
    Ready,
    Refused,
    Rows,
    Step,
    Successor,
    TensorHeader,
    Train,
)
from swarmnode.protocols.peers import peer_from_public_key, peer_to_bytes
from swarmnode.protocols.records import ServerRecord, sign_record
from swarmnode.protocols.swarm_key import EXPORTER_CONTEXT as CONTEXT
from swarmnode.protocols.swarm_key import EXPORTER_LABEL as LABEL
from swarmnode.protocols.swarm_key import Binding, SwarmKey, exporter_from_handshake, key_file, prove
from swarmnode.protocols.tensors import (
    CODEC_E4M3,
    CODEC_E5M2,
    CODEC_H4,
    CODEC_H6,
    CODEC_H8,
    CODEC_LOSSLESS,
    CODEC_RAW,
)
from swarmnode.protocols.wire import unpack_map

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "protocols" / "golden"
PAGE = ROOT / "docs" / "PROTOCOL.md"

SIGNING_KEY = SigningKey(bytes(range(32)))
PEER = peer_from_public_key(bytes(SIGNING_KEY.verify_key))
OTHER_PEER = peer_from_public_key(bytes(SigningKey(bytes(range(32, 64))).verify_key))
SESSION_ID = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
NEXT_SESSION_ID = bytes.fromhex("101112131415161718191a1b1c1d1e1f")
MODEL = ModelId("org/model", "4f2a", bytes([0xAB]) * 32)

RECORD = ServerRecord(
    peer=PEER,
    sequence=7,
    lifetime_seconds=45.0,
    model=MODEL,
    num_blocks=30,
    start=10,
    end=20,
    dtype="float32",
    quantisation="none",
    state="online",
    cache_tokens_left=65_536,
    decode_tokens_per_second=21.5,
    prefill_tokens_per_second=310.0,
    addrs=("/ip4/192.0.2.7/tcp/4001",),
    protocols=SPOKEN,
    public_name="ada",
)
RECORD_BYTES = sign_record(RECORD, lambda data: SIGNING_KEY.sign(data).signature)
ADAPTER = AdapterId("poet", bytes(range(0xA0, 0xB0)))
ADAPTERS_RECORD = replace(RECORD, adapters=(ADAPTER, AdapterId("sql-2", bytes(range(0xB0, 0xC0)))))
ADAPTERS_RECORD_BYTES = sign_record(ADAPTERS_RECORD, lambda data: SIGNING_KEY.sign(data).signature)

STEP_TENSOR = TensorHeader("float32", (1, 2, 4))
STEP_BODY = struct.pack("<8f", *(0.5 * number for number in range(8)))
OUTPUT_TENSOR = TensorHeader("float32", (1, 1, 4))
OUTPUT_BODY = STEP_BODY[16:]
TRACE = (HopTrace(0, 10, 20, 900),)
FULL_TRACE = (*TRACE, HopTrace(10, 30, 15, 1_800))

SWARM_KEY = SwarmKey(bytes(range(64, 96)))
HANDSHAKE_HASH = bytes(range(96, 128))
BINDING = Binding(
    dialler=PEER,
    listener=OTHER_PEER,
    dialler_nonce=bytes([0xD1]) * 32,
    listener_nonce=bytes([0x15]) * 32,
    exported=exporter_from_handshake(HANDSHAKE_HASH, LABEL, CONTEXT, 32),
)


DATAGRAM_NONCE = 0x0102030405060708

# A tail group, an outlier in each row, a number that is not round. Without zstd, whose bytes are its version's own.
BLOB_ROWS, BLOB_COLS = 2, 10
BLOB_VALUES = struct.pack("<20f", *(0.5 * number for number in range(9)), 1000.0, *range(-4, 4), 0.001, -64.0)
BLOBS = (
    ("raw", CODEC_RAW, 0),
    ("lossless", CODEC_LOSSLESS, 0),
    ("h8", CODEC_H8, 0),
    ("h6", CODEC_H6, 0),
    ("e4m3", CODEC_E4M3, 0),
    ("e5m2", CODEC_E5M2, 64),
    ("h4", CODEC_H4, 0),
)


def blob(codec: int, group: int) -> bytes:
    """The example's matrix, coded."""
    return bytes(codec_encode(codec, 0, BLOB_ROWS, BLOB_COLS, BLOB_VALUES, group=group, zstd_level=0))


CODED_TENSOR = TensorHeader("float32", (1, 2, 64), CODEC_H8)
CODED_BODY = bytes(codec_encode(CODEC_H8, 0, 2, 64, struct.pack("<128f", *(number % 7 - 3.0 for number in range(128)))))


@dataclass(frozen=True)
class SessionExample:
    name: str
    message: Message
    body: bytes = b""

    @property
    def data(self) -> bytes:
        head, body = messages.encode(self.message, self.body)
        return head + bytes(body)


@dataclass(frozen=True)
class DirectoryExample:
    name: str
    message: DirectoryMessage

    @property
    def data(self) -> bytes:
        head, body = directory.encode(self.message)
        return head + bytes(body)


@dataclass(frozen=True)
class GateExample:
    name: str
    message: GateMessage

    @property
    def data(self) -> bytes:
        return gate.encode(self.message)


@dataclass(frozen=True)
class BytesExample:
    """What is not a frame: a peer id, a record, a key."""

    name: str
    data: bytes


SESSION_EXAMPLES = (
    SessionExample(
        "open",
        Open(
            session=SESSION_ID,
            model=MODEL,
            start=0,
            end=10,
            dtype="float32",
            codecs=(0,),
            rows=1,
            max_tokens=512,
            predecessor=None,
            successor=Successor(OTHER_PEER, ("/ip4/192.0.2.8/tcp/4001",), NEXT_SESSION_ID),
        ),
    ),
    SessionExample(
        "open_public",
        Open(
            session=SESSION_ID,
            model=MODEL,
            start=0,
            end=30,
            dtype="float32",
            codecs=(0,),
            rows=1,
            max_tokens=512,
            public_tokens=300,
        ),
    ),
    SessionExample(
        "open_adapter",
        Open(
            NEXT_SESSION_ID, MODEL, 10, 30, "float32", (0,), rows=1, max_tokens=512, predecessor=PEER, adapter=ADAPTER
        ),
    ),
    SessionExample("opened", Opened(SESSION_ID, 65_024, 1_024, 4)),
    SessionExample("attach", Attach(NEXT_SESSION_ID)),
    SessionExample("attached", Attached()),
    SessionExample("step", Step(3, 40, 1, STEP_TENSOR, TRACE), STEP_BODY),
    SessionExample("output", Output(3, 41, 30, OUTPUT_TENSOR, FULL_TRACE), OUTPUT_BODY),
    SessionExample("step_segments", Step(3, 40, 1, STEP_TENSOR, TRACE, (1, 1)), STEP_BODY),
    SessionExample("step_h8", Step(3, 40, 1, CODED_TENSOR, TRACE), CODED_BODY),
    SessionExample("output_undelivered", Output(3, 40, 10, STEP_TENSOR, TRACE), STEP_BODY),
    SessionExample("output_acknowledgement", Output(2, 40, 30, TensorHeader("float32", (1, 0, 4)), FULL_TRACE)),
    SessionExample("refused", Refused("peer-busy", "All 256 sessions are taken.", "Try another server.", 4.5)),
    SessionExample("break", Break("replay-needed", "The cache begins at position 32.", "Send it again.", 4)),
    SessionExample("close", Close()),
    SessionExample("ping", Ping(1)),
    SessionExample("pong", Pong(1)),
    SessionExample("train", Train(MODEL, 0, 10, True, "float32", (1, 0), 12, 2, 1)),
    SessionExample("ready", Ready(8, 2)),
    SessionExample("prompts", Prompts(8, TensorHeader("float32", (2, 1, 4))), STEP_BODY),
    SessionExample("rows", Rows(8, STEP_TENSOR), STEP_BODY),
    SessionExample("gradients", Gradients(8, STEP_TENSOR), STEP_BODY),
)
DIRECTORY_EXAMPLES = (
    DirectoryExample("announce", Announce(model_key(MODEL.name), ((RECORD_BYTES, 1.5),))),
    DirectoryExample(
        "announced",
        Announced((Verdict(True), Verdict(False, "A newer record of this server is known.", 9, True))),
    ),
    DirectoryExample("find", Find(model_key(MODEL.name))),
    DirectoryExample("found", Found(((RECORD_BYTES, 2.0),), crowded=False)),
    DirectoryExample("get_info", GetInfo()),
    DirectoryExample("info", Info(RECORD_BYTES)),
    DirectoryExample("info_none", Info(None)),
)
GATE_EXAMPLES = (
    GateExample("gate_hello", Hello(BINDING.dialler_nonce)),
    GateExample("gate_answer", Answer(BINDING.listener_nonce, prove(SWARM_KEY, BINDING, "listener"))),
    GateExample("gate_proof", Proof(prove(SWARM_KEY, BINDING, "dialler"))),
    GateExample("gate_shut", Shut(gate.WRONG_KEY)),
)
BYTES_EXAMPLES = (
    BytesExample("peer_id", peer_to_bytes(PEER)),
    BytesExample("record", RECORD_BYTES),
    BytesExample("record_adapters", ADAPTERS_RECORD_BYTES),
    BytesExample("key_model", model_key(MODEL.name)),
    BytesExample("key_bucket_0", bucket_keys(MODEL.name, 0, 32)[0]),
    BytesExample("key_bucket_1", bucket_keys(MODEL.name, 32, 64)[0]),
    BytesExample("key_index", INDEX_KEY),
    BytesExample("home", home_key(peer_to_bytes(PEER))),
    BytesExample("swarm_key", key_file(SWARM_KEY)),
    BytesExample("noise_exporter", BINDING.exported),
    BytesExample("datagram_ping", struct.pack("<BQ", 0, DATAGRAM_NONCE)),
    BytesExample("datagram_pong", struct.pack("<BQ", 1, DATAGRAM_NONCE)),
    *(BytesExample(f"blob_{name}", blob(codec, group)) for name, codec, group in BLOBS),
)
Example = SessionExample | DirectoryExample | GateExample | BytesExample
EXAMPLES: tuple[Example, ...] = (*BYTES_EXAMPLES, *SESSION_EXAMPLES, *DIRECTORY_EXAMPLES, *GATE_EXAMPLES)


def hex_lines(data: bytes) -> str:
    """32 bytes a line."""
    return "\n".join(data[start : start + 32].hex() for start in range(0, len(data), 32)) + "\n"


def shown(value: object) -> str:
    """A header for people: JSON, but for bytes, which are h'…', and numbers with a fraction, which keep it."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case bytes():
            return f"h'{value.hex()}'"
        case str():
            return f'"{value}"'
        case list():
            return "[" + ", ".join(shown(item) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f'"{name}": {shown(item)}' for name, item in value.items()) + "}"
        case _:
            return repr(value)


def block(example: Example) -> str:
    """The example as the page shows it."""
    lines = [f"#### `{example.name}`", ""]
    if example.name in ("record", "record_adapters"):
        lines += ["```text", shown(unpack_map(example.data[64:], "record")), "```", ""]
    if not isinstance(example, BytesExample):
        reader = FrameReader()
        reader.feed(example.data)
        frame = reader.next_frame()
        assert frame is not None
        lines += ["```text", shown(dict(frame.header)), "```", ""]
    return "\n".join([*lines, "```hex", hex_lines(example.data) + "```", ""])


def page_examples(page: str) -> dict[str, bytes]:
    """The bytes of every example of the page, by name."""
    found = re.findall(r"^#### `(\w+)`\n(?:(?!####).)*?^```hex\n([0-9a-f\n]*)```$", page, re.MULTILINE | re.DOTALL)
    return {name: bytes.fromhex(text) for name, text in found}


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for example in EXAMPLES:
        (FOLDER / f"{example.name}.hex").write_text(hex_lines(example.data))
    page = PAGE.read_text()
    begin, end = "<!-- examples begin -->\n", "<!-- examples end -->"
    head, rest = page.split(begin)
    tail = rest.split(end)[1]
    PAGE.write_text(head + begin + "\n" + "\n".join(block(example) for example in EXAMPLES) + "\n" + end + tail)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write()
