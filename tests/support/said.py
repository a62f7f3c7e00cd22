"""What peers may say: keys, records and messages for tests, made by hand and by hypothesis."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import pairwise

from hypothesis import strategies as st
from nacl.signing import SigningKey

from swarmnode.protocols import limits
from swarmnode.protocols.adapters import AdapterId
from swarmnode.protocols.directory import Announce, Announced, DirectoryMessage, Find, Found, GetInfo, Info, Verdict
from swarmnode.protocols.frames import Frame, FrameReader
from swarmnode.protocols.ids import SPOKEN, ModelId
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
    Train,
)
from swarmnode.protocols.peers import peer_from_public_key
from swarmnode.protocols.records import ServerRecord, sign_record
from swarmnode.protocols.tensors import DTYPE_BYTES, TensorHeader
from swarmnode.protocols.wire import clean_text

SOME_KEY = bytes(range(32))
MODEL = ModelId("HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac", bytes(range(32)))


def server_key(number: int) -> SigningKey:
    return SigningKey(number.to_bytes(32, "big"))


def peer_of(key: SigningKey) -> str:
    return peer_from_public_key(bytes(key.verify_key))


def server_record(number: int = 1, **changes: object) -> ServerRecord:
    """The record of server `number`, a plausible one but for `changes`."""
    plain = ServerRecord(
        peer=peer_of(server_key(number)),
        sequence=1_000,
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
        public_name="ada's machine",
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def signed(record: ServerRecord, number: int = 1) -> bytes:
    key = server_key(number)
    return sign_record(record, lambda data: key.sign(data).signature)


def signed_server(number: int = 1, **changes: object) -> bytes:
    return signed(server_record(number, **changes), number)


def whole(buffers: Iterable[bytes | memoryview]) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)


def only_frame(data: bytes) -> Frame:
    """The one frame that these bytes are."""
    reader = FrameReader()
    reader.feed(data)
    frame = reader.next_frame()
    assert frame is not None
    assert not reader.in_frame
    return frame


# By hypothesis

printable = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1)
words = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=limits.MAX_WORD_CHARS)
session_ids = st.binary(min_size=limits.SESSION_ID_BYTES, max_size=limits.SESSION_ID_BYTES)
peers = st.integers(0, 50).map(lambda number: peer_of(server_key(number)))
adapter_ids = st.builds(
    AdapterId,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", fullmatch=True),
    digest=st.binary(min_size=limits.ADAPTER_DIGEST_BYTES, max_size=limits.ADAPTER_DIGEST_BYTES),
)
addrs = st.lists(st.sampled_from(["/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/1", "/dns/a.example/tcp/65535"]), max_size=4)
models = st.builds(
    ModelId,
    name=printable.map(lambda name: name[: limits.MAX_NAME_CHARS]),
    revision=words,
    digest=st.binary(min_size=limits.DIGEST_BYTES, max_size=limits.DIGEST_BYTES),
)
prose = st.text().map(lambda text: clean_text(text, limits.MAX_REASON_CHARS))
step_numbers = st.integers(0, limits.MAX_STEP_NUMBER)
nonces = st.integers(0, limits.MAX_INT)


@st.composite
def spans(draw: st.DrawFn, num_blocks: int = limits.MAX_BLOCKS) -> tuple[int, int]:
    start = draw(st.integers(0, num_blocks - 1))
    return start, draw(st.integers(start + 1, num_blocks))


@st.composite
def traces(draw: st.DrawFn) -> tuple[HopTrace, ...]:
    microseconds = st.integers(0, limits.MAX_TRACE_MICROSECONDS)
    hops = draw(st.lists(st.tuples(spans(), microseconds, microseconds), max_size=4))
    return tuple(HopTrace(start, end, queue, compute) for (start, end), queue, compute in hops)


@st.composite
def tensors(draw: st.DrawFn, least_tokens: int) -> TensorHeader:
    shape = draw(st.integers(1, 3)), draw(st.integers(least_tokens, 5)), draw(st.integers(1, 40))
    return TensorHeader(draw(st.sampled_from(sorted(DTYPE_BYTES))), shape)


@st.composite
def opens(draw: st.DrawFn) -> Open:
    start, end = draw(spans())
    codecs = [0, *draw(st.lists(st.integers(1, limits.MAX_CODEC_ID), max_size=3))]
    successors = st.builds(Successor, peer=peers, addrs=addrs.map(tuple), session=session_ids)
    return Open(
        session=draw(session_ids),
        model=draw(models),
        start=start,
        end=end,
        dtype=draw(words),
        codecs=tuple(draw(st.permutations(codecs))),
        rows=draw(st.integers(1, limits.MAX_ROWS)),
        max_tokens=draw(st.integers(1, limits.MAX_CONTEXT_TOKENS)),
        predecessor=draw(st.none() | peers),
        successor=draw(st.none() | successors),
        public_tokens=draw(st.integers(0, limits.MAX_CONTEXT_TOKENS)),
        adapter=draw(st.none() | adapter_ids),
    )


def segments(tokens: int) -> st.SearchStrategy[tuple[int, ...]]:
    """How a step of so many tokens may be parted: anyhow, or not at all."""
    cuts = st.sets(st.integers(1, max(1, tokens - 1)), max_size=min(tokens, limits.MAX_SEGMENTS) - 1)
    parted = cuts.map(lambda found: tuple(b - a for a, b in pairwise([0, *sorted(found), tokens])))
    return st.just(()) | parted


@st.composite
def steps(draw: st.DrawFn) -> Step:
    tensor = draw(tensors(1))
    return Step(
        step=draw(step_numbers),
        position=draw(st.integers(0, limits.MAX_CONTEXT_TOKENS - tensor.tokens)),
        keep=draw(st.integers(0, tensor.tokens)),
        tensor=tensor,
        trace=draw(traces()),
        segments=draw(segments(tensor.tokens)),
    )


@st.composite
def outputs(draw: st.DrawFn) -> Output:
    tensor = draw(tensors(0))
    return Output(
        step=draw(step_numbers),
        position=draw(st.integers(0, limits.MAX_CONTEXT_TOKENS - tensor.tokens)),
        next_block=draw(st.integers(1, limits.MAX_BLOCKS)),
        tensor=tensor,
        trace=draw(traces()),
    )


@st.composite
def trains(draw: st.DrawFn) -> Train:
    start, end = draw(spans())
    tokens = draw(st.integers(1, limits.MAX_STEP_TOKENS))
    return Train(
        model=draw(models),
        start=start,
        end=end,
        backward=draw(st.booleans()),
        dtype=draw(words),
        codecs=(1, 0),
        rows=draw(st.integers(1, limits.MAX_TRAINING_ROWS)),
        tokens=tokens,
        prompt_tokens=draw(st.integers(0, tokens)),
    )


rows = st.integers(0, limits.MAX_TRAINING_ROWS)

messages: st.SearchStrategy[Message] = st.one_of(
    trains(),
    st.builds(Ready, group_rows=st.integers(1, limits.MAX_ROWS), max_in_flight=st.integers(1, limits.MAX_IN_FLIGHT)),
    st.builds(Prompts, block=st.integers(0, limits.MAX_BLOCKS), tensor=tensors(1)),
    st.builds(Rows, row=rows, tensor=tensors(1)),
    st.builds(Gradients, row=rows, tensor=tensors(1)),
    opens(),
    st.builds(
        Opened,
        session=session_ids,
        cache_tokens_left=st.integers(0, limits.MAX_CACHE_TOKENS),
        max_step_tokens=st.integers(1, limits.MAX_STEP_TOKENS),
        max_in_flight=st.integers(1, limits.MAX_IN_FLIGHT),
    ),
    st.builds(Attach, session=session_ids),
    st.just(Attached()),
    steps(),
    outputs(),
    st.builds(
        Refused,
        code=words,
        message=prose,
        hint=prose,
        retry_after_seconds=st.none() | st.floats(0, limits.MAX_RETRY_SECONDS),
    ),
    st.builds(Break, code=words, message=prose, hint=prose, step=st.none() | step_numbers, peer=st.none() | peers),
    st.just(Close()),
    st.builds(Ping, nonce=nonces),
    st.builds(Pong, nonce=nonces),
)


def body_for(message: Message) -> bytes:
    """Bytes of the length that the message's tensor has."""
    length = message.tensor.raw_bytes if isinstance(message, Step | Output | Prompts | Rows | Gradients) else 0
    return bytes(index % 251 for index in range(length))


ages = st.integers(0, 60_000).map(lambda milliseconds: milliseconds / 1000)
aged_records = st.tuples(st.binary(max_size=100), ages)
verdicts = st.builds(
    Verdict,
    stored=st.booleans(),
    reason=prose.map(lambda reason: reason[: limits.MAX_VERDICT_CHARS].strip()),
    newest_sequence=st.none() | st.integers(0, limits.MAX_SEQUENCE),
    crowded=st.booleans(),
)
directory_messages: st.SearchStrategy[DirectoryMessage] = st.one_of(
    st.builds(Announce, key=st.just(SOME_KEY), records=st.lists(aged_records, max_size=32).map(tuple)),
    st.builds(Announced, verdicts=st.lists(verdicts, max_size=32).map(tuple)),
    st.builds(Find, key=st.just(SOME_KEY)),
    st.builds(Found, records=st.lists(aged_records, max_size=128).map(tuple), crowded=st.booleans()),
    st.just(GetInfo()),
    st.builds(Info, record=st.none() | st.binary(min_size=1, max_size=500)),
    st.builds(Refused, code=st.just("peer-busy"), message=prose),
)
