"""The messages that open a session and tie its servers together: open, opened, attach, attached, refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from . import limits
from .adapters import AdapterId, adapter_to_map, read_adapter
from .common import (
    model_to_map,
    read_addrs,
    read_model,
    read_optional_peer,
    read_reason,
    read_retry_after,
    read_span,
    reason_to_map,
)
from .ids import ModelId
from .peers import check_peer
from .tensors import read_codecs
from .wire import Fields

__all__ = ["Attach", "Attached", "Open", "Opened", "Refused", "Successor"]


@dataclass(frozen=True, slots=True)
class Successor:
    """Where a server sends what it computed: a peer, where it listens, and the session opened there."""

    peer: str
    addrs: tuple[str, ...]
    session: bytes


@dataclass(frozen=True, slots=True)
class Open:
    """client → server: run blocks `start:end` of a model for me.

    Attributes:
        session: 16 random bytes, this server's name for the session from now on.
        dtype: of the hidden states to send and to be sent.
        codecs: ids that may be used in this session, the one the client likes best first; 0 (raw) always among them.
            The client and every server of its route read them all.
        rows: sequences side by side; this version's servers take 1.
        max_tokens: how many tokens the session may grow to.
        predecessor: the peer that will attach and bring the steps; None when the client itself brings them.
        successor: None when outputs go back to the client.
        public_tokens: how many of the session's first tokens are no secret, so that a server may share the work on them
            with other clients whose sessions begin alike.
        adapter: the adapter to run the blocks with; None is the model as it is.
    """

    type: ClassVar[str] = "open"
    session: bytes
    model: ModelId
    start: int
    end: int
    dtype: str
    codecs: tuple[int, ...]
    rows: int
    max_tokens: int
    predecessor: str | None = None
    successor: Successor | None = None
    public_tokens: int = 0
    adapter: AdapterId | None = None

    def to_map(self) -> dict[str, object]:
        successor = self.successor
        public = {"public_tokens": self.public_tokens} if self.public_tokens else {}
        return {
            "session": self.session,
            "model": model_to_map(self.model),
            "start": self.start,
            "end": self.end,
            "dtype": self.dtype,
            "codecs": self.codecs,
            "rows": self.rows,
            "max_tokens": self.max_tokens,
            "predecessor": self.predecessor,
            "successor": successor and {"peer": successor.peer, "addrs": successor.addrs, "session": successor.session},
            **public,
            **({"adapter": adapter_to_map(self.adapter)} if self.adapter else {}),
        }

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Open:
        start, end = read_span(fields)
        successor = None
        if fields.has("successor"):
            named = fields.map("successor")
            successor = Successor(
                peer=check_peer(named.text("peer", limits.MAX_PEER_CHARS)),
                addrs=read_addrs(named),
                session=named.binary("session", limits.SESSION_ID_BYTES),
            )
        public_tokens = 0
        if fields.has("public_tokens"):
            public_tokens = fields.integer("public_tokens", limits.MAX_CONTEXT_TOKENS)
        return Open(
            session=fields.binary("session", limits.SESSION_ID_BYTES),
            model=read_model(fields),
            start=start,
            end=end,
            dtype=fields.text("dtype", limits.MAX_WORD_CHARS, least_chars=1),
            codecs=read_codecs(fields),
            rows=fields.integer("rows", limits.MAX_ROWS, least=1),
            max_tokens=fields.integer("max_tokens", limits.MAX_CONTEXT_TOKENS, least=1),
            predecessor=read_optional_peer(fields, "predecessor"),
            successor=successor,
            public_tokens=public_tokens,
            adapter=read_adapter(fields.map("adapter")) if fields.has("adapter") else None,
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """server → client: the session stands; and how much it may send at once."""

    type: ClassVar[str] = "opened"
    session: bytes
    cache_tokens_left: int
    max_step_tokens: int
    max_in_flight: int

    def to_map(self) -> dict[str, object]:
        return {
            "session": self.session,
            "cache_tokens_left": self.cache_tokens_left,
            "max_step_tokens": self.max_step_tokens,
            "max_in_flight": self.max_in_flight,
        }

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Opened:
        return Opened(
            session=fields.binary("session", limits.SESSION_ID_BYTES),
            cache_tokens_left=fields.integer("cache_tokens_left", limits.MAX_CACHE_TOKENS),
            max_step_tokens=fields.integer("max_step_tokens", limits.MAX_STEP_TOKENS, least=1),
            max_in_flight=fields.integer("max_in_flight", limits.MAX_IN_FLIGHT, least=1),
        )


@dataclass(frozen=True, slots=True)
class Attach:
    """server → its successor, on a stream of its own: the steps of this session come this way."""

    type: ClassVar[str] = "attach"
    session: bytes

    def to_map(self) -> dict[str, object]:
        return {"session": self.session}

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Attach:
        return Attach(fields.binary("session", limits.SESSION_ID_BYTES))


@dataclass(frozen=True, slots=True)
class Attached:
    """successor → server: send them."""

    type: ClassVar[str] = "attached"

    def to_map(self) -> dict[str, object]:
        return {}

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Attached:
        return Attached()


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer no to an open or attach. `code` is one of `swarmnode.errors`; see `refusals.error_from`."""

    type: ClassVar[str] = "refused"
    code: str
    message: str
    hint: str = ""
    retry_after_seconds: float | None = None

    def to_map(self) -> dict[str, object]:
        return reason_to_map(self.code, self.message, self.hint) | {"retry_after_seconds": self.retry_after_seconds}

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Refused:
        return Refused(*read_reason(fields), read_retry_after(fields))
