"""Every bound that peers hold each other to, and the reason for its size. Normative in docs/PROTOCOL.md."""

from __future__ import annotations

# Frames --------------------------------------------------------------------------------------------------------------

PREFIX_BYTES = 16
BODY_ALIGNMENT_BYTES = 64  # a cache line and the widest vector register: a receiver may compute in place
MAX_HEADER_BYTES = 16 * 1024  # the longest valid one, MAX_ANNOUNCED_RECORDS verdicts, needs three quarters of it
MAX_BODY_BYTES = 64 * 1024 * 1024  # 1,024 tokens of the widest models in float32, rounded up

# Header values -------------------------------------------------------------------------------------------------------

MAX_DEPTH = 8  # the deepest header of ours is 3; the rest is room for fields of later versions
MAX_MAP_ENTRIES = 64
MAX_ARRAY_ITEMS = 1024
MAX_INT = 2**63 - 1  # what every language's signed 64-bit integer holds
MIN_INT = -(2**63)

# Names and text ------------------------------------------------------------------------------------------------------

MAX_NAME_CHARS = 200  # a hub id is at most 96 + 1 + 96
MAX_REVISION_CHARS = 128  # a commit or a fingerprint is 64 hex digits at most
MAX_WORD_CHARS = 32  # dtype, quantisation, state, error code, message type
MAX_PUBLIC_NAME_CHARS = 64
MAX_REASON_CHARS = 512  # a sentence for a person
MAX_PEER_CHARS = 64  # an Ed25519 peer id has 52
MAX_ADDRS = 16
MAX_ADDR_CHARS = 256  # a relayed address with two peer ids and a host name fits
MAX_PROTOCOLS = 16
MAX_PROTOCOL_CHARS = 64

# Models and sessions -------------------------------------------------------------------------------------------------

DIGEST_BYTES = 32
SESSION_ID_BYTES = 16  # random, so that nobody can guess another's session
MAX_BLOCKS = 1024  # eight times the deepest model in use
MAX_CONTEXT_TOKENS = 2**24  # position + tokens never passes it
MAX_STEP_TOKENS = 2**16
MAX_SEGMENTS = 1024  # one for each token of the longest step that servers take today
MAX_ROWS = 256
MAX_HIDDEN_SIZE = 2**17
MAX_CODEC_ID = 255
MAX_CODECS = 16
MAX_ADAPTERS = 16  # their names and digests take a quarter of a record at most
MAX_ADAPTER_NAME_CHARS = 32
ADAPTER_DIGEST_BYTES = 16  # half a SHA-256: finding another adapter of the same digest takes 2**64 tries
MAX_STEP_NUMBER = 2**53 - 1
MAX_IN_FLIGHT = 64
MAX_HOPS = 64
MAX_TRACE_MICROSECONDS = 3_600_000_000  # an hour in one queue is a lie or a corpse
MAX_RETRY_SECONDS = 3600.0
MAX_TRAINING_ROWS = 2**16  # of one pass; more are further passes

# Records and directory -----------------------------------------------------------------------------------------------

KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_LIFETIME_SECONDS = 60.0  # a dead server is gone within this
MIN_LIFETIME_SECONDS = 1.0
MAX_RECORD_BYTES = 4096
MAX_SEQUENCE = 2**62  # far from MAX_INT, so that "one more" always exists
MAX_TOKENS_PER_SECOND = 1e9
MAX_CACHE_TOKENS = 2**40
MAX_RECORDS_PER_KEY = 128  # four servers for every block of a 32-block model, and more lie under bucket keys
MAX_RECORDS_PER_MESSAGE = MAX_RECORDS_PER_KEY
MAX_DIRECTORY_BODY_BYTES = MAX_RECORDS_PER_MESSAGE * MAX_RECORD_BYTES
MAX_ANNOUNCED_RECORDS = 32  # so many verdicts fit one header, even in a script of four bytes to a character
MAX_VERDICT_CHARS = 80

# Private swarms ------------------------------------------------------------------------------------------------------

SWARM_KEY_BYTES = 32
MAX_KEY_FILE_BYTES = 1024  # a header line and a line of hex digits need 87
NONCE_BYTES = 32  # random: two are never alike
PROOF_BYTES = 32  # an HMAC with SHA-256
EXPORTED_BYTES = 32
MAX_GATE_BYTES = 1024  # what one peer may say at the gate; the longest exchange needs 200
