"""Every setting of the program, once: the table from which flags, environment names, config keys and docs are made.

Knows no argparse, no file and no environment: `flags.py` reads values, `config.py` decides which of them counts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from .codec import COMPRESSIONS
from .flags import Flag, choice, count, file, number, one_of, size, switch, text, texts, words

__all__ = ["COMMANDS", "FLAGS", "SWARM_COMMANDS", "Settings", "flags_of"]

COMMANDS: Final[dict[str, str]] = {
    "serve": "give the swarm some blocks of a model",
    "generate": "let the swarm finish a prompt",
    "chat": "talk with a model, turn by turn",
    "bootstrap": "be the peer that others find the swarm through",
    "status": "what the swarm serves: models, blocks, gaps, rates",
    "models": "the model families that can be cut into blocks",
    "swarm-key": "make the key of a private swarm",
    "demo": "a whole swarm on this machine, a real small model, one answer",
}

EVERY: Final = tuple(COMMANDS)
SWARM_COMMANDS: Final = ("serve", "generate", "chat", "bootstrap", "status")
_ASKING: Final = ("generate", "chat")
_MODELLED: Final = ("serve", *_ASKING)

# A demo is for a machine that somebody sits at; more processes than this help nobody.
MAX_DEMO_SERVERS: Final = 16
# More than the deepest model in use has, and than the protocol allows.
MAX_BLOCKS: Final = 1024
# Far beyond any context a model has today; keeps arithmetic on it harmless.
MAX_TOKENS: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that a command was told. A field is the flag of the same name with dashes.

    Every command has all fields; those that are no flag of it keep their defaults.
    """

    command: str

    # which model
    model: str | None = text(
        _MODELLED,
        "hub id (org/name), local folder or .gguf file; with none named the swarm's only model, else the bundled one",
        positional=("serve",),
        metavar="MODEL",
    )
    revision: str | None = text(_MODELLED, "branch, tag or commit on the hub", metavar="REVISION")
    blocks: str | None = text(
        ("serve",),
        "blocks to serve, half-open: 20:40 is twenty blocks; auto: those that the swarm needs most; "
        "default: all, or auto if they do not fit",
        metavar="A:B",
    )
    num_blocks: int | None = count(
        ("serve",), "how many blocks to serve: those that the swarm needs most", low=1, high=MAX_BLOCKS
    )

    adapter: tuple[str, ...] = texts(
        _MODELLED,
        "a LoRA adapter: serve offers NAME=FOLDER or NAME=HUB_ID, given several times for several; who asks names the "
        "one to use, NAME or NAME@DIGEST",
        metavar="ADAPTER",
    )

    # the swarm
    join: tuple[str, ...] = words(
        SWARM_COMMANDS, "a peer of the swarm to join; may be given several times", metavar="MULTIADDR"
    )
    listen: tuple[str, ...] = words(
        SWARM_COMMANDS, "where to listen for peers; may be given several times", metavar="MULTIADDR"
    )
    identity: Path | None = file(  # noqa: RUF009 - makes a dataclass field
        SWARM_COMMANDS, "key file, created when missing; who only asks gets a fresh key each time", metavar="FILE"
    )
    no_mdns: bool = switch(SWARM_COMMANDS, "do not look for peers on the local network")
    no_relay: bool = switch(("bootstrap",), "do not let peers that cannot be dialled be reached through this node")
    verb: str | None = one_of(("swarm-key",), "new makes a key", ("new",))
    swarm_key: Path | None = file(  # noqa: RUF009 - makes a dataclass field
        (*SWARM_COMMANDS, "swarm-key"),
        "key file of a private swarm: only who holds the same key gets a connection",
        positional=("swarm-key",),
        metavar="FILE",
    )
    allow_peer: tuple[str, ...] = words(
        SWARM_COMMANDS, "a peer to have connections with, or a file of peer ids; then with no others", metavar="PEER"
    )
    deny_peer: tuple[str, ...] = words(
        SWARM_COMMANDS, "a peer to have no connections with, or a file of peer ids", metavar="PEER"
    )
    prefer_peer: tuple[str, ...] = words(
        ("serve",), "a peer whose steps go before those of others, or a file of peer ids", metavar="PEER"
    )
    public_name: str | None = text(("serve",), "a name to show beside this server", metavar="NAME")

    # this machine
    device: str = text(
        _MODELLED,
        "where to compute: auto, cpu, mps, cuda, cuda:1; serve takes several, such as cuda:0,cuda:1",
        default="auto",
        metavar="DEVICE",
    )
    offload: bool = switch(
        ("serve",),
        "keep weights for which the GPU has no room in the machine's memory, and copy them there for each pass",
    )
    dtype: str = choice(_MODELLED, "number format of weights and states", ("auto", "float32", "bfloat16", "float16"))
    quant: str = choice(
        ("serve",),
        "keep the weights of linear layers in few bits: less memory, quicker decoding, answers that differ a little",
        ("none", "int8", "int4"),
    )
    cache_tokens: int | None = count(
        ("serve",),
        "tokens of KV cache to keep for all sessions together; default: what there is room for",
        low=1,
        high=MAX_TOKENS,
    )
    cache_memory: int | None = size(("serve",), "the same as memory, instead of --cache-tokens")
    prefill_chunk: int = count(
        ("serve",),
        "tokens of a prompt to compute at once before others have their turn; 0: as they come, up to 1024",
        default=0,
        high=MAX_TOKENS,
    )
    deterministic: bool = switch(
        ("serve",), "compute a session that is alone as it would be among others, to the last bit"
    )

    no_prefix_cache: bool = switch(
        ("serve",), "compute what a client's sessions begin with for each of them, even where they begin alike"
    )
    share_prefixes: bool = switch(
        ("serve",), "share the work on what sessions begin with between clients that call it public"
    )
    public_prefix: int = count(
        _ASKING,
        "so many tokens, from the first on, are no secret: servers may share the work on them with other clients",
        default=0,
        high=MAX_TOKENS,
    )

    max_memory: int | None = size(
        ("serve",), "memory to take on each device at most, on a CPU by the whole process; default: all that is free"
    )

    training_memory: int | None = size(
        ("serve",),
        "memory for training through the blocks; 1GiB if free, none of --max-memory; 0B: no training",
    )

    compression: str = choice(
        (*_MODELLED, "demo"),
        "how hidden states travel: raw and lossless exactly, h8 nearly so, h6, fp8 and h4 smaller with more loss; "
        "who asks decides for all hops",
        COMPRESSIONS,
    )

    # the answer (`swarmnode.models.settings.Sampling` says which numbers make sense)
    prompt: str | None = text(("generate", "demo"), "the text to go on from; - reads standard input", metavar="TEXT")
    chat: bool = switch(("generate",), "put the prompt through the model's chat template")
    max_new_tokens: int = count((*_ASKING, "demo"), "stop after so many tokens", default=256)
    temperature: float = number(_ASKING, "0 takes the likeliest token, more is more adventurous", default=0.0)
    top_k: int = count(_ASKING, "choose among the k likeliest tokens; 0: all", default=0)
    top_p: float = number(_ASKING, "choose among the likeliest tokens of this total", default=1.0)
    min_p: float = number(_ASKING, "drop tokens less likely than this share of the likeliest", default=0.0)
    repetition_penalty: float = number(_ASKING, "above 1 makes repeating less likely", default=1.0)
    seed: int | None = count(_ASKING, "same seed, same text")
    stop: tuple[str, ...] = texts(_ASKING, "end the answer before this text; may be given several times")

    # the demo, the status
    servers: int = count(("demo",), "how many servers share the blocks", default=3, low=1, high=MAX_DEMO_SERVERS)
    watch: bool = switch(("status",), "show it again every two seconds, until Ctrl-C")

    # how to speak
    json: bool = switch(EVERY, "one JSON object a line on standard output, for programs")
    quiet: bool = switch(EVERY, "no progress, only the result", short="-q")
    debug: bool = switch(EVERY, "tracebacks and a full log on standard error")
    config: Path | None = file(  # noqa: RUF009 - makes a dataclass field
        EVERY, "config file; default: swarmnode/config.toml in the XDG config folder", metavar="FILE"
    )


FLAGS: Final[tuple[Flag, ...]] = tuple(
    found.metadata["flag"].named(found.name) for found in fields(Settings) if "flag" in found.metadata
)


def flags_of(command: str) -> tuple[Flag, ...]:
    """The flags that `command` takes, in the order of the table."""
    return tuple(flag for flag in FLAGS if command in flag.commands)
