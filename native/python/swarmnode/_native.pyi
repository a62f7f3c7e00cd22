"""The types of the Rust extension; `scripts/check` compares them with the binary."""

import sys
from collections.abc import Sequence
from typing import final

from typing_extensions import Buffer

__all__ = [
    "BadMessage",
    "Bell",
    "Body",
    "Connection",
    "Linear",
    "Operation",
    "Room",
    "Stream",
    "Transport",
    "TransportError",
    "attend",
    "codec_decode_into",
    "codec_encode",
    "codec_encode_into",
    "codec_inspect",
    "codec_size",
    "frame_checksum",
    "kernels_available",
    "model_digest",
]

# The codec (docs/PROTOCOL.md). Schemes: 0 raw, 1 lossless, 2 h8, 3 h6, 4 e4m3, 5 e5m2, 6 h4. Dtypes: 0 float32,
# 1 float16, 2 bfloat16. Buffers are contiguous bytes whatever their format says. All raise ValueError with a reason.

def codec_size(scheme: int, dtype: int, rows: int, cols: int, group: int = 0) -> int:
    """The most bytes that the blob of such a tensor may have, whatever its values are."""

def codec_encode(
    scheme: int,
    dtype: int,
    rows: int,
    cols: int,
    values: Buffer,
    /,
    row_stride_bytes: int | None = None,
    group: int = 0,
    zstd_level: int = 1,
) -> bytearray:
    """A blob that holds `rows` x `cols` values, exactly as long as it has to be; raw if they are not all finite.

    `values` reach from the first row's first byte to the last row's last. `zstd_level` 0 leaves zstd out.
    """

def codec_encode_into(
    scheme: int,
    dtype: int,
    rows: int,
    cols: int,
    values: Buffer,
    out: Buffer,
    /,
    row_stride_bytes: int | None = None,
    group: int = 0,
    zstd_level: int = 1,
) -> int:
    """The same into the start of `out`, which has room for `codec_size` bytes; says how many it took."""

def codec_inspect(blob: Buffer) -> tuple[int, int, int, int]:
    """Scheme, dtype, rows and columns of a blob, from its header alone, which has to make sense."""

def codec_decode_into(blob: Buffer, out: Buffer, /, out_dtype: int, rows: int, cols: int) -> None:
    """Decodes a blob into `out`, which has exactly the bytes of `rows` x `cols` values of `out_dtype`.

    After an error the content of `out` is anything.
    """

# The kernels: what comes out for a row depends on this row and on what it is multiplied with, bit for bit, however
# many rows there are and threads take part. Tensors are DLPack capsules named "dltensor" (torch's `to_dlpack`), on the
# CPU, in float32, float16 or bfloat16, of up to four dimensions whose last has no gaps. ValueError if they do not fit.

def kernels_available() -> bool:
    """Whether this CPU has code of its own."""

@final
class Room:
    """One session's keys and values in one block, `[rows, key heads, room, width]` each."""

    def __new__(cls, keys: object, values: object, /) -> Room: ...

def attend(
    queries: object,
    keys: object,
    values: object,
    out: object,
    rooms: Sequence[Room],
    places: Sequence[tuple[int, int, int]],
    /,
    scale: float,
    threads: int,
    soft_cap: float | None = None,
    sinks: Sequence[float] | None = None,
) -> None:
    """Put each session's new key and value into its room and attend to what its query sees.

    Queries, new keys and new values are `[1, heads, tokens, width]`, `out` is `[1, tokens, heads, width]`. A place says
    where the first of a session's rows stands among the tokens, where in its room the new key goes, and which one there
    is the first that the query sees.
    """

@final
class Linear:
    """A linear layer's weights, `[outputs, inputs]`, and its bias, `[outputs]`."""

    def __new__(cls, weights: object, bias: object | None, /) -> Linear: ...
    def apply(self, rows: object, out: object, runs: Sequence[tuple[int, int]], /, threads: int) -> None:
        """Write into `out`, `[rows, outputs]`, the layer's results for those of `rows`, `[rows, inputs]`, in `runs`.

        A run is the first row and the one behind the last; they come in order.
        """

def frame_checksum(*parts: Buffer) -> int:
    """CRC-32C of the parts as if they were one run of bytes."""

def model_digest(config: bytes, index: bytes) -> bytes:
    """SHA-256 of a model's config and weights index, both JSON objects."""

# The transport. A call takes what is there at once and gives None when it must be made again after `Bell.drain` has
# named its token. One reader and one writer of a stream at a time.

class TransportError(Exception):
    """A connection or a stream is gone, or never came about."""

class BadMessage(ValueError):
    """What came is no message."""

@final
class Bell:
    """What rings for all transports of one event loop."""

    def __new__(cls, handle: int) -> Bell:
        """Eight bytes are written to `handle` when `drain` is due."""

    def drain(self) -> list[int]:
        """The tokens that have become ready since the last call."""

@final
class Transport:
    """One node's transport: its thread, its sockets. Not to be made before a fork."""

    def __new__(cls, seed: bytes, bell: Bell) -> Transport:
        """`seed` is that of the Ed25519 key."""

    def listen(self, socket: int) -> tuple[str, int]:
        """Take over a bound UDP socket. Connections come in over it, go out over it, holes are punched from it."""

    def dial(self, host: str, port: int, peer: str) -> Operation:
        """Gives a `Connection` to this peer and no other."""

    def listen_tcp(self, socket: int) -> tuple[str, int]:
        """Take over a listening TCP socket, and take connections over it."""

    def dial_tcp(self, host: str, port: int, peer: str) -> Operation:
        """As `dial`, over TCP, Noise and yamux."""

    def upgrade(self, stream: Stream, expected: str | None) -> Operation:
        """Gives a `Connection` inside of a stream, which is not to be used otherwise any more.

        `expected` is the peer that we have reached by it, None when it has reached us.
        """

    def accept(self) -> Operation:
        """Gives the next inbound `Connection`, whatever it runs over."""

    def punch(self, host: str, port: int, seconds: float) -> None:
        """Send random datagrams there for a while, so that a NAT of ours lets in what comes from there."""

    def close(self) -> None:
        """End everything and say so. Blocks for a moment."""

@final
class Operation:
    """Something under way; dropping it gives it up."""

    @property
    def token(self) -> int: ...
    def poll(self) -> object | None:
        """Its result, once. Raises `TransportError`."""

@final
class Connection:
    """A connection to a peer that has proved who it is."""

    @property
    def peer(self) -> str: ...
    @property
    def opened_by_us(self) -> bool: ...
    @property
    def remote_addr(self) -> tuple[str, int] | None:
        """None when it runs inside of another connection."""

    @property
    def transport(self) -> str:
        """What it runs over: `quic`, `tcp`, or a `stream` of another connection."""

    @property
    def near(self) -> bool:
        """Whether the other end is on this machine."""

    @property
    def closed(self) -> bool: ...
    @property
    def open_streams(self) -> int: ...
    def open(self) -> Operation:
        """Gives a `Stream`."""

    def accept(self) -> Operation:
        """Gives the next `Stream` that the other end opens."""

    def ended(self) -> Operation:
        """Gives, at the end, whether it was meant, and why in words."""

    def ping(self) -> Operation:
        """One datagram there and back; gives the seconds it took."""

    def close(self) -> None: ...
    def exporter(self, label: bytes, context: bytes, length: int) -> bytes:
        """Bytes that only the two ends of this connection can make (RFC 5705)."""

    def stats(self) -> tuple[float, int, int, int, int, int, int, int, int | None]:
        """Round trip seconds, packets sent, lost, window bytes, bytes sent, received, queued, largest datagram,
        bytes a second that the path was seen to deliver while there was more to send."""

@final
class Stream:
    """One stream of a connection. Bytes or whole messages, as `docs/PROTOCOL.md` frames them."""

    @property
    def read_token(self) -> int: ...
    @property
    def write_token(self) -> int: ...
    @property
    def moved_bytes(self) -> int:
        """Bytes that the stream has given and taken so far."""

    def read(self, max_bytes: int) -> bytes | None:
        """What has come; empty at the end."""

    def read_into(self, buffer: Buffer) -> int | None:
        """The same into the start of a buffer; how much."""

    def unread(self, data: bytes) -> None:
        """Put back what was read too much."""

    def write(self, data: Buffer, start: int) -> int | None:
        """Take what there is room for of `data` from `start` on; how much."""

    def finish(self) -> bool | None: ...
    def close(self) -> None: ...
    def reset(self, code: int) -> None: ...
    def receive(self, max_body_bytes: int) -> tuple[bytes, memoryview] | None:
        """A message's header and its body, writable and at a multiple of 64. Raises `EOFError` at the end."""

    def receive_into(self, buffer: Buffer) -> tuple[bytes, int] | None:
        """The same, the body into the start of `buffer`, which the next call must bring again; its length."""

    def give_up_receive(self) -> None:
        """There will be no next call of `receive_into`. A message that has half come breaks the stream."""

    def send(self, header: bytes, body: Buffer) -> bool:
        """Send a message; False when the same call must be made again."""

    def give_up_send(self) -> None:
        """There will be no next call of `send`. A message that is half out resets the stream."""

@final
class Body:
    """The memory of a message's body, for `memoryview`."""

    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...
