"""What `--json` prints: every event and its fields. Programs live on it; docs/JSON.md says the same to people.

Fields may be added in later versions; none is renamed or removed. Knows nothing of how events come about.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Literal

__all__ = [
    "EVENTS",
    "Chosen",
    "Done",
    "Event",
    "Failed",
    "Family",
    "Hop",
    "Joined",
    "Listening",
    "Load",
    "ModelName",
    "ModelStatus",
    "Models",
    "Process",
    "Progress",
    "Ready",
    "Route",
    "ServerStatus",
    "Status",
    "SwarmKey",
    "Token",
    "json_line",
]


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model, exactly: two models with equal names but other weights differ in `digest`."""

    name: str
    revision: str
    digest: str


@dataclass(frozen=True, slots=True)
class Hop:
    """One server on a route and the blocks it runs there, half-open."""

    peer_id: str
    blocks: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server of a model, as its own signed record says. `confirmed`: it has answered for itself just now.

    `relayed`: others reach it through relays only, unless they punch through to it. `adapters`: those that sessions on
    it may choose, as `name@digest`.
    """

    peer_id: str
    blocks: tuple[int, int]
    state: str
    confirmed: bool
    dtype: str
    cache_tokens_left: int
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    public_name: str
    addrs: tuple[str, ...]
    relayed: bool = False
    quantisation: str = "none"
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model of the swarm. `available`: confirmed online servers hold every block, so there are no `gaps`."""

    model: ModelName
    num_blocks: int
    available: bool
    gaps: tuple[tuple[int, int], ...]
    servers: tuple[ServerStatus, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """One model type of transformers. `truncatable`: its sessions can go back without being sent again."""

    family: str
    certified: bool
    reason: str
    max_difference: float | None
    truncatable: bool


@dataclass(frozen=True, slots=True)
class Listening:
    """The node can be dialled."""

    event: ClassVar[str] = "listening"
    peer_id: str
    addrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """The node is in touch with the swarm; `peers` is how many it is connected to."""

    event: ClassVar[str] = "joined"
    peers: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download, a conversion or a load has come; at most a few a second."""

    event: ClassVar[str] = "progress"
    stage: Literal["download", "convert", "load"]
    what: str
    done: int
    total: int | None
    unit: Literal["bytes", "blocks"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which blocks the server will hold, and why: told when it chose them itself, or has to keep to some memory.

    `servers` is how many others hold or load blocks of the model. The sizes are those of memory: `whole_bytes` is what
    all blocks would take, `limit_bytes` what may be taken, null where the system does not say how much is free.
    """

    event: ClassVar[str] = "chosen"
    blocks: tuple[int, int]
    num_blocks: int
    why: Literal["asked", "all", "first", "gap", "thin"]
    servers: int
    weights_bytes: int
    cache_bytes: int
    work_bytes: int
    whole_bytes: int
    limit_bytes: int | None
    cache_tokens: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The server answers, and the swarm has been told. `cache_bytes` is 0 for states that do not grow with tokens."""

    event: ClassVar[str] = "ready"
    model: ModelName
    blocks: tuple[int, int]
    num_blocks: int
    dtype: str
    device: str
    cache_tokens: int
    quantisation: str = "none"
    cache_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the server is; told when it changes, at most twice a second.

    `evicted` sessions gave their cache to others and may have been sent again; `refused` ones waited for cache in vain.
    """

    event: ClassVar[str] = "load"
    sessions: int
    cache_tokens_left: int
    cache_tokens_held: int
    waiting_steps: int
    evicted: int
    refused: int
    saved_tokens: int
    streams: int
    peers: int


@dataclass(frozen=True, slots=True)
class Process:
    """The demo started a process of its own."""

    event: ClassVar[str] = "process"
    name: str
    pid: int
    blocks: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Route:
    """The servers that the answer goes through, in order."""

    event: ClassVar[str] = "route"
    hops: tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """One token. The `text`s joined are the answer; one may be empty while a character is incomplete."""

    event: ClassVar[str] = "token"
    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete. `hop_seconds` is what a hop of a decode step takes beyond its server's computing.

    The rates are null where one token alone has none.
    """

    event: ClassVar[str] = "done"
    ids: tuple[int, ...]
    text: str
    finish_reason: str
    ttft_seconds: float
    tokens_per_second: float | None
    hop_seconds: float | None
    route: tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """What the swarm serves, as seen from here."""

    event: ClassVar[str] = "status"
    peer_id: str
    peers: int
    models: tuple[ModelStatus, ...]


@dataclass(frozen=True, slots=True)
class Models:
    """Every model type that was examined, and whether it may be served."""

    event: ClassVar[str] = "models"
    families: tuple[Family, ...]


@dataclass(frozen=True, slots=True)
class SwarmKey:
    """The key of a private swarm has been made."""

    event: ClassVar[str] = "swarm_key"
    file: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Why the command ended; the last line. `code` is stable, the words are not."""

    event: ClassVar[str] = "error"
    code: str
    message: str
    hint: str


Event = (
    Listening
    | Joined
    | Progress
    | Chosen
    | Ready
    | Load
    | Process
    | Route
    | Token
    | Done
    | Status
    | Models
    | SwarmKey
    | Failed
)

EVENTS: Final[tuple[type[Event], ...]] = (
    Listening,
    Joined,
    Progress,
    Chosen,
    Ready,
    Load,
    Process,
    Route,
    Token,
    Done,
    Status,
    Models,
    SwarmKey,
    Failed,
)


def json_line(event: Event) -> str:
    """One line of JSON, `event` first, no line break at its end. Numbers that JSON lacks never get here."""
    fields: dict[str, Any] = {"event": event.event, **asdict(event)}
    return json.dumps(fields, allow_nan=False)  # plain ASCII: no locale can break it
