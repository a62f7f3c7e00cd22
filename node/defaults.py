"""Every timing and size of the node room, in one place. Knows nothing else.

A number that belongs to the wire format itself lives in `protocols`; a number that only one screen needs lives there.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ATTACH_SECONDS",
    "BATCH_TOKENS",
    "CACHE_PATIENCE_SECONDS",
    "CLIENT_SILENT_PINGS",
    "CLOSE_SECONDS",
    "DEFAULT_CACHE_TOKENS",
    "DEFAULT_LISTEN",
    "EVICTABLE_SECONDS",
    "FIND_SECONDS",
    "FIRST_FRAME_SECONDS",
    "HOP_NANOSECONDS",
    "JOIN_SECONDS",
    "LATE_SECONDS",
    "LOOK_AGAIN_SECONDS",
    "MAX_IN_FLIGHT_STEPS",
    "MAX_OPEN_TRIES",
    "MAX_PLACES",
    "MAX_PREFIX_BLOCKS",
    "MAX_REPLAY_TRIES",
    "MAX_RETRY_AFTER_SECONDS",
    "MAX_SESSIONS",
    "MAX_SESSIONS_PER_PEER",
    "MAX_STEP_WAIT_SECONDS",
    "MAX_TORCH_JOBS",
    "MAX_TRAINING_PASSES",
    "MAX_TRAINING_PASSES_PER_PEER",
    "MAX_WAITING_ATTACHES",
    "MAX_WAITING_STEPS",
    "MAX_WAITING_TOKENS",
    "MAX_WAITING_TOKENS_PER_PEER",
    "MIN_RETRY_AFTER_SECONDS",
    "NEIGHBOUR_SECONDS",
    "OPEN_SECONDS",
    "OUTBOX_FRAMES",
    "PING_SECONDS",
    "PREFILL_CHUNK_TOKENS",
    "PREFIX_BLOCK_TOKENS",
    "RECEIVE_BYTES",
    "RECORD_LIFETIME_SECONDS",
    "REJOIN_SECONDS",
    "RELAY_NANOSECONDS",
    "SESSION_IDLE_SECONDS",
    "SESSION_PROMISE_TOKENS",
    "SILENCE_SECONDS",
    "SILENT_PINGS",
    "STEP_BODY_BYTES",
    "STEP_SECONDS",
    "TRAINING_BYTES",
    "TRAINING_GRACE_SECONDS",
    "TRAINING_GROUPS",
    "TRAINING_GROUP_TOKENS",
    "TRAINING_IDLE_SECONDS",
    "TRAINING_ROW_TOKENS",
    "UNKNOWN_BLOCK_NANOSECONDS",
]

DEFAULT_LISTEN: Final = (
    "/ip4/0.0.0.0/udp/0/quic-v1",
    "/ip4/0.0.0.0/tcp/0",
    "/ip6/::/udp/0/quic-v1",
    "/ip6/::/tcp/0",
)
"""All interfaces, any free ports. TCP is for those whom UDP does not reach; IPv6 is left out where there is none."""

# --- steps ---

PREFILL_CHUNK_TOKENS: Final = 1024
"""Most tokens of one step. Prompts up to this long keep the very shapes that plain transformers computes with."""

STEP_BODY_BYTES: Final = 16 * 1024 * 1024
"""Most bytes of one step's tensor: wide models get shorter chunks."""

MAX_IN_FLIGHT_STEPS: Final = 4
"""Steps of a session that may be under way at once: enough to keep the servers of a short ring busy in prefill."""

STEP_SECONDS: Final = 300.0
"""A ring whose servers answer pings but return no step for so long has lost it."""

# --- sessions ---

PING_SECONDS: Final = 2.0
"""How often either end of a session stream says that it is there."""

SILENT_PINGS: Final = 3
"""Ping intervals in a row without a byte from the other end, after which it is given up."""

SILENCE_SECONDS: Final = PING_SECONDS * SILENT_PINGS

CLIENT_SILENT_PINGS: Final = 10
"""The same for a server's patience with a client, which may be a laptop that stutters."""

FIRST_FRAME_SECONDS: Final = 10.0
"""A stream that has not said by then what it wants is dropped."""

OPEN_SECONDS: Final = 15.0
"""To dial a server and hear its answer to an open."""

ATTACH_SECONDS: Final = 10.0
"""How long an attach waits for the open that it belongs to: the two come from different peers, in any order."""

MAX_WAITING_ATTACHES: Final = 256
"""Attaches of one server that may wait for their open at once."""

SESSION_IDLE_SECONDS: Final = 1800.0
"""A session that steps no more for so long gives its cache back, although its client is still there."""

MAX_SESSIONS: Final = 256
"""Sessions of one server in all."""

MAX_SESSIONS_PER_PEER: Final = 32
"""Sessions of one server for one client."""

MAX_RETRY_AFTER_SECONDS: Final = 60.0
"""No refusal tells a client to stay away for longer."""

MIN_RETRY_AFTER_SECONDS: Final = 1.0
"""Nor asks it back sooner."""

MAX_OPEN_TRIES: Final = 4
"""Routes tried for one session before its client gives up."""

MAX_REPLAY_TRIES: Final = 8
"""How often a session whose cache was given to others is opened again for one step, waiting as servers say."""

OUTBOX_FRAMES: Final = 64
"""Frames that may wait to be written to one stream: in-flight steps, pings and a little more."""

SESSION_PROMISE_TOKENS: Final = 512
"""What a session of unknown length asks to be promised at open; it grows from there while there is room."""

DEFAULT_CACHE_TOKENS: Final = 65_536
"""Tokens that all sessions of a server hold together. Memory is taken as they grow, not before."""

# --- batches ---

LOOK_AGAIN_SECONDS: Final = 0.5
"""How often steps that wait for cache are looked at again while nothing else happens."""

MAX_STEP_WAIT_SECONDS: Final = 120.0
"""A step that could not be begun for so long ends its session: its client would give it up before long."""

BATCH_TOKENS: Final = 512
"""Tokens of one batch: the more, the more tokens a second, and the longer a decoding session waits for its next."""

MAX_WAITING_STEPS: Final = MAX_SESSIONS * MAX_IN_FLIGHT_STEPS
"""Steps of one server that may wait for a batch: all that its sessions may have under way."""

MAX_WAITING_TOKENS: Final = 32 * PREFILL_CHUNK_TOKENS
"""Tokens of all steps that wait. Each keeps a hidden state in memory, 16 KiB of it in a model 4,096 wide."""

MAX_WAITING_TOKENS_PER_PEER: Final = MAX_WAITING_TOKENS // 4
"""The same for one client, so that it cannot fill the line alone."""

EVICTABLE_SECONDS: Final = 5.0
"""A session without a step for so long counts as idle: its cache goes first when others need it. A step's way through
a ring takes far less, a person's next question far more."""

LATE_SECONDS: Final = 5.0
"""Who was told to come again and is later than this has lost its place in line."""

MAX_PLACES: Final = MAX_SESSIONS
"""Peers that may stand in line for one server. Further ones are told a time, too, but have no place."""

CACHE_PATIENCE_SECONDS: Final = 10.0
"""How long a step waits for cache before sessions that are not idle give way, or its own."""

# --- prefixes ---

PREFIX_BLOCK_TOKENS: Final = 256
"""Tokens of a block that sessions which begin alike share; what is alike for less is computed again. Attention takes
each by itself, which costs a prompt of 1,024 tokens 7 % (128: 12 to 18 %)."""

MAX_PREFIX_BLOCKS: Final = 4096
"""Blocks that a server keeps, however small their models: a million tokens."""

# --- training ---

TRAINING_BYTES: Final = 1 << 30
"""Most memory that all passes of training take together, if so much is free."""

TRAINING_ROW_TOKENS: Final = 2048
"""Most tokens of a row: a row cannot be cut, as its tokens look at each other."""

TRAINING_GROUP_TOKENS: Final = BATCH_TOKENS
"""Most tokens of a group of rows, but for one row that is longer: what a session waits for at most is such a group in
one block, there and back."""

TRAINING_GROUPS: Final = 2
"""Groups of a pass that may be under way: one is computed while the other travels."""

TRAINING_GRACE_SECONDS: Final = 0.02
"""Training goes on when no step has come for so long behind the last batch: a session that decodes sends its next one
sooner, unless its way is long."""

TRAINING_IDLE_SECONDS: Final = 60.0
"""A pass whose client sends no rows for so long is given up."""

MAX_TRAINING_PASSES: Final = 64
"""Passes of one server in all."""

MAX_TRAINING_PASSES_PER_PEER: Final = 4
"""Passes of one server for one client."""

# --- routes ---

HOP_NANOSECONDS: Final = 20_000_000
"""What one more hop is taken to cost a step: a network crossing and its software."""

RELAY_NANOSECONDS: Final = 40_000_000
"""What a hop is taken to cost more when only relays reach its server: two crossings instead of one, both ways, and a
line that is shared. Punching may spare that, but nobody knows before."""

UNKNOWN_BLOCK_NANOSECONDS: Final = 10_000_000
"""What a block is taken to cost on a server that has not measured itself."""

# --- the node ---

RECEIVE_BYTES: Final = 256 * 1024
"""Most bytes asked of a stream at once."""

MAX_TORCH_JOBS: Final = 1024
"""Jobs that may wait for the torch thread; beyond it their tasks wait in line."""

CLOSE_SECONDS: Final = 0.7
"""How long leaving politely may take, so that Ctrl-C is over within a second."""

JOIN_SECONDS: Final = 20.0
"""To reach the first of the peers to join through."""

NEIGHBOUR_SECONDS: Final = 1.5
"""After the first peer is reached, others get this long; so does the local network to show one at all."""

REJOIN_SECONDS: Final = 15.0
"""How often a node that has lost all its peers tries again those it joined through."""

RECORD_LIFETIME_SECONDS: Final = 45.0
"""How long a server's record may be believed: two refreshes may fail before it is forgotten."""

FIND_SECONDS: Final = 20.0
"""To find and confirm the servers of a model."""
