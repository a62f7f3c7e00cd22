"""Tables and bars of plain text for `status` and `models`. Pure: events in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .events import Models, ModelStatus, ServerStatus, Status
from .paint import Paint, harmless

__all__ = ["coverage", "models_table", "number_format", "short_peer", "status_table"]

BAR_WIDTH: Final = 60
# Ends of peer ids differ, beginnings (12D3KooW) do not.
SHORT_PEER_CHARACTERS: Final = 6
_NONE, _ONE, _SEVERAL = "·", "▒", "█"


def short_peer(peer_id: str) -> str:
    """The last characters of a peer id, enough to tell peers apart by eye."""
    return f"…{peer_id[-SHORT_PEER_CHARACTERS:]}"


def coverage(model: ModelStatus, width: int = BAR_WIDTH) -> str:
    """A bar of the model's blocks: `·` nobody, `▒` one confirmed online server, `█` two or more.

    A model of more blocks than `width` has several blocks in a cell, which then shows its worst one.
    """
    held = [0] * model.num_blocks
    for server in model.servers:
        if server.state == "online" and server.confirmed:
            start, end = server.blocks
            for block in range(start, min(end, model.num_blocks)):
                held[block] += 1
    cells = max(1, min(width, model.num_blocks))
    marks = []
    for cell in range(cells):
        worst = min(held[cell * len(held) // cells : (cell + 1) * len(held) // cells], default=0)
        marks.append(_NONE if worst == 0 else _ONE if worst == 1 else _SEVERAL)
    return "".join(marks)


def number_format(dtype: str, quantisation: str) -> str:
    """In what weights and states are: `bfloat16`, or `int8, bfloat16` when the weights are quantised."""
    return dtype if quantisation == "none" else f"{quantisation}, {dtype}"


def status_table(status: Status, paint: Paint) -> str:
    """Each model with its coverage, its gaps and its servers."""
    if not status.models:
        return f"{_peers(status.peers)}, and nobody serves a model."
    return "\n\n".join(_model(model, paint) for model in status.models)


def models_table(models: Models) -> str:
    """One line a family, and how many are certified."""
    certified = sum(family.certified for family in models.families)
    rows = [("family", "certified", "max difference", "reason")]
    for family in models.families:
        difference = "" if family.max_difference is None else f"{family.max_difference:g}"
        rows.append((family.family, "yes" if family.certified else "no", difference, family.reason))
    return f"{_columns(rows)}\n{certified} of {len(models.families)} families certified."


def _model(model: ModelStatus, paint: Paint) -> str:
    name = model.model
    gaps = ", ".join(f"{start}:{end}" for start, end in model.gaps)
    verdict = paint("green", "complete") if model.available else paint("red", f"nobody serves {gaps or 'it'}")
    revision = harmless(name.revision[:12])
    head = f"{paint('bold', harmless(name.name))}  revision {revision}, {model.num_blocks} blocks: {verdict}"
    lines = [head, f"  0 {coverage(model)} {model.num_blocks}"]
    rows: list[tuple[str, ...]] = [
        ("peer", "blocks", "state", "decode tokens/s", "prefill tokens/s", "cache left", "format", "name")
    ]
    rows += [_server(server) for server in sorted(model.servers, key=lambda each: (each.blocks, each.peer_id))]
    lines += [f"  {line}" for line in _columns(rows).splitlines()]
    for adapter in sorted({each for server in model.servers for each in server.adapters}):
        peers = ", ".join(short_peer(each.peer_id) for each in model.servers if adapter in each.adapters)
        lines.append(f"  adapter {harmless(adapter)} on {peers}")
    return "\n".join(lines)


def _server(server: ServerStatus) -> tuple[str, ...]:
    start, end = server.blocks
    return (
        short_peer(server.peer_id),
        f"{start}:{end}",
        harmless(server.state) + (", relayed" if server.relayed else "") + ("" if server.confirmed else ", no answer"),
        f"{server.decode_tokens_per_second:.1f}",
        f"{server.prefill_tokens_per_second:.0f}",
        str(server.cache_tokens_left),
        harmless(number_format(server.dtype, server.quantisation)),
        harmless(server.public_name),
    )


def _peers(count: int) -> str:
    return f"{count} peer{'' if count == 1 else 's'} connected"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
