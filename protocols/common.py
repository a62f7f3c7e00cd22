"""Groups of fields that several messages and records share: a model, a span, addresses, a peer, a reason."""

from __future__ import annotations

from . import limits
from .ids import ModelId
from .peers import check_peer
from .wire import Fields, clean_text

__all__ = [
    "model_to_map",
    "read_addrs",
    "read_model",
    "read_optional_peer",
    "read_reason",
    "read_retry_after",
    "read_span",
    "reason_to_map",
]


def model_to_map(model: ModelId) -> dict[str, object]:
    return {"name": model.name, "revision": model.revision, "digest": model.digest}


def read_model(fields: Fields) -> ModelId:
    model = fields.map("model")
    return ModelId(
        name=model.text("name", limits.MAX_NAME_CHARS, least_chars=1),
        revision=model.text("revision", limits.MAX_REVISION_CHARS),
        digest=model.binary("digest", limits.DIGEST_BYTES),
    )


def read_span(fields: Fields) -> tuple[int, int]:
    start = fields.integer("start", limits.MAX_BLOCKS)
    end = fields.integer("end", limits.MAX_BLOCKS)
    if start >= end:
        raise fields.wrong(f"the span {start}:{end} holds no block.")
    return start, end


def read_addrs(fields: Fields) -> tuple[str, ...]:
    """Multiaddrs in text form, unproved: whoever dials them parses them."""
    addrs = fields.texts("addrs", limits.MAX_ADDRS, limits.MAX_ADDR_CHARS)
    if not all(addr.startswith("/") and addr.isascii() for addr in addrs):
        raise fields.wrong("addrs must hold multiaddrs.")
    return addrs


def read_optional_peer(fields: Fields, name: str) -> str | None:
    return check_peer(fields.text(name, limits.MAX_PEER_CHARS)) if fields.has(name) else None


def reason_to_map(code: str, message: str, hint: str) -> dict[str, object]:
    longest = limits.MAX_REASON_CHARS
    return {"code": code, "message": clean_text(message, longest), "hint": clean_text(hint, longest)}


def read_reason(fields: Fields) -> tuple[str, str, str]:
    longest = limits.MAX_REASON_CHARS
    code = fields.text("code", limits.MAX_WORD_CHARS, least_chars=1)
    return code, fields.prose("message", longest), fields.prose("hint", longest)


def read_retry_after(fields: Fields) -> float | None:
    name = "retry_after_seconds"
    return fields.number(name, limits.MAX_RETRY_SECONDS) if fields.has(name) else None
