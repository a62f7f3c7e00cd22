"""The messages by which records are announced, found and confirmed, to a frame and back. Knows no store.

Records travel in the body, one after the other, as the opaque signed bytes they are; the header says how long each is
and how much of its lifetime has passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from swarmnode.errors import ProtocolViolation

from . import limits
from .frames import Frame, encode_frame
from .opening import Refused
from .wire import Fields, clean_text, shown

__all__ = [
    "AgedRecord",
    "Announce",
    "Announced",
    "DirectoryMessage",
    "Find",
    "Found",
    "GetInfo",
    "Info",
    "Refused",
    "Verdict",
    "encode",
    "parse",
]

AgedRecord = tuple[bytes, float]
"""A record's bytes and how many seconds of its lifetime have passed."""

_MAX_AGE_MS = int(limits.MAX_LIFETIME_SECONDS * 1000)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one announced record.

    Attributes:
        stored: whether it is kept under the key now.
        reason: why not, or empty.
        newest_sequence: of this server's records, the newest sequence known where it stands in the way: an owner that
            lost count goes on from here.
        crowded: many servers share the key, so announce under the bucket keys as well.
    """

    stored: bool
    reason: str = ""
    newest_sequence: int | None = None
    crowded: bool = False


@dataclass(frozen=True, slots=True)
class Announce:
    """Keep these records under this key."""

    type: ClassVar[str] = "announce"
    key: bytes
    records: tuple[AgedRecord, ...]

    def to_frame(self) -> tuple[dict[str, object], bytes]:
        ages, lengths, body = _join(self.records)
        return {"key": self.key, "ages_ms": ages, "lengths": lengths}, body

    @staticmethod
    def read(fields: Fields, body: memoryview) -> Announce:
        key = fields.binary("key", limits.KEY_BYTES)
        return Announce(key, _split(fields, body, limits.MAX_ANNOUNCED_RECORDS))


@dataclass(frozen=True, slots=True)
class Announced:
    """The answer: one verdict for each record, in their order."""

    type: ClassVar[str] = "announced"
    verdicts: tuple[Verdict, ...]

    def to_frame(self) -> tuple[dict[str, object], bytes]:
        verdicts = [
            {
                "stored": verdict.stored,
                "reason": clean_text(verdict.reason, limits.MAX_VERDICT_CHARS),
                "newest_sequence": verdict.newest_sequence,
                "crowded": verdict.crowded,
            }
            for verdict in self.verdicts
        ]
        return {"verdicts": verdicts}, b""

    @staticmethod
    def read(fields: Fields, body: memoryview) -> Announced:
        verdicts = []
        for entry in fields.maps("verdicts", limits.MAX_ANNOUNCED_RECORDS):
            newest = entry.integer("newest_sequence", limits.MAX_SEQUENCE) if entry.has("newest_sequence") else None
            verdicts.append(
                Verdict(
                    stored=entry.flag("stored"),
                    reason=entry.prose("reason", limits.MAX_VERDICT_CHARS),
                    newest_sequence=newest,
                    crowded=entry.flag("crowded"),
                )
            )
        return Announced(tuple(verdicts))


@dataclass(frozen=True, slots=True)
class Find:
    """Which records do you keep under this key?"""

    type: ClassVar[str] = "find"
    key: bytes

    def to_frame(self) -> tuple[dict[str, object], bytes]:
        return {"key": self.key}, b""

    @staticmethod
    def read(fields: Fields, body: memoryview) -> Find:
        return Find(fields.binary("key", limits.KEY_BYTES))


@dataclass(frozen=True, slots=True)
class Found:
    """The answer: the records, unopened, and whether bucket keys are worth asking too."""

    type: ClassVar[str] = "found"
    records: tuple[AgedRecord, ...]
    crowded: bool = False

    def to_frame(self) -> tuple[dict[str, object], bytes]:
        ages, lengths, body = _join(self.records)
        return {"ages_ms": ages, "lengths": lengths, "crowded": self.crowded}, body

    @staticmethod
    def read(fields: Fields, body: memoryview) -> Found:
        return Found(_split(fields, body, limits.MAX_RECORDS_PER_MESSAGE), fields.flag("crowded"))


@dataclass(frozen=True, slots=True)
class GetInfo:
    """What do you say of yourself at this moment?"""

    type: ClassVar[str] = "get_info"

    def to_frame(self) -> tuple[dict[str, object], bytes]:
        return {}, b""

    @staticmethod
    def read(fields: Fields, body: memoryview) -> GetInfo:
        return GetInfo()


@dataclass(frozen=True, slots=True)
class Info:
    """The answer: a record signed just now, or None from a peer that serves nothing."""

    type: ClassVar[str] = "info"
    record: bytes | None

    def to_frame(self) -> tuple[dict[str, object], bytes]:
        return {}, self.record or b""

    @staticmethod
    def read(fields: Fields, body: memoryview) -> Info:
        if body.nbytes > limits.MAX_RECORD_BYTES:
            raise fields.wrong(f"a record has at most {limits.MAX_RECORD_BYTES} bytes, not {body.nbytes}.")
        return Info(bytes(body) or None)


DirectoryMessage = Announce | Announced | Find | Found | GetInfo | Info | Refused

_WITH_BODY = (Announce, Found, Info)
_READERS: dict[str, Callable[[Fields, memoryview], DirectoryMessage]] = {
    kind.type: kind.read for kind in (Announce, Announced, Find, Found, GetInfo, Info)
} | {Refused.type: lambda fields, body: Refused.read(fields, body.nbytes)}


def encode(message: DirectoryMessage) -> tuple[bytes, memoryview]:
    """The two buffers of a message's frame, to be sent one after the other."""
    header, body = (message.to_map(), b"") if isinstance(message, Refused) else message.to_frame()
    return encode_frame({"type": message.type, **header}, body)


def parse(frame: Frame) -> DirectoryMessage:
    """The message of a frame, its fields checked; the records inside are not opened. Raises `ProtocolViolation`."""
    kind = Fields("message", frame.header).text("type", limits.MAX_WORD_CHARS)
    reader = _READERS.get(kind)
    if reader is None:
        raise ProtocolViolation(f'"{shown(kind)}" is not a message of the directory.')
    message = reader(Fields(kind, frame.header), frame.body)
    if frame.body.nbytes and not isinstance(message, _WITH_BODY):
        raise ProtocolViolation(f"{kind}: it has a body of {frame.body.nbytes} bytes and must have none.")
    return message


def _join(records: Sequence[AgedRecord]) -> tuple[list[int], list[int], bytes]:
    ages = [_milliseconds(age) for _, age in records]
    return ages, [len(data) for data, _ in records], b"".join(data for data, _ in records)


def _milliseconds(age: float) -> int:
    """Rounded up, since what is handed on must never live longer for it; but not by the multiplication's own error."""
    rounded = math.ceil(age * 1000)
    return min(_MAX_AGE_MS, rounded - 1 if (rounded - 1) / 1000 >= age else rounded)


def _split(fields: Fields, body: memoryview, most: int) -> tuple[AgedRecord, ...]:
    ages = fields.integers("ages_ms", most, _MAX_AGE_MS)
    lengths = fields.integers("lengths", most, limits.MAX_RECORD_BYTES)
    if len(ages) != len(lengths):
        raise fields.wrong(f"there are {len(ages)} ages for {len(lengths)} records.")
    if sum(lengths) != body.nbytes:
        raise fields.wrong(f"the records take {sum(lengths)} bytes, but the body has {body.nbytes}.")
    records = []
    start = 0
    for age, length in zip(ages, lengths, strict=True):
        records.append((bytes(body[start : start + length]), age / 1000))
        start += length
    return tuple(records)
