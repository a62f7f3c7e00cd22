"""The voice for people: the answer and tables on standard output, everything else on standard error."""

from __future__ import annotations

import sys
import threading

from swarmnode.node.sizes import shown_size

from .bars import Bars
from .events import (
    Chosen,
    Done,
    Event,
    Failed,
    Hop,
    Joined,
    Listening,
    Load,
    Models,
    Process,
    Progress,
    Ready,
    Route,
    Status,
    SwarmKey,
    Token,
)
from .paint import Paint, harmless
from .tables import models_table, number_format, short_peer, status_table
from .voice import write_last

__all__ = ["PeopleVoice", "error_text"]


class PeopleVoice:
    """Text. With `quiet` only results and errors."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()
        self._bars = Bars()
        self._paint = Paint(sys.stderr)
        self._mid_line = False

    def say(self, event: Event) -> None:
        if isinstance(event, Progress):
            if not self._quiet:
                self._bars.show(event)
            return
        if isinstance(event, Load):
            return  # a line for every session would bury the rest; people have `status`
        with self._lock:
            if isinstance(event, Token | Done | Status | Models):
                self._result(event)
            elif isinstance(event, Failed):
                self._finish_line()
                sys.stderr.write(self._red_error(event) + "\n")
                sys.stderr.flush()
            elif not self._quiet:
                self._bars.above(_choice(event) if isinstance(event, Chosen) else self._story(event))

    def note(self, text: str) -> None:
        if not self._quiet:
            with self._lock:
                self._bars.above(text)

    def last_words(self, failed: Failed) -> None:
        write_last(2, ("\n" if self._mid_line else "") + error_text(failed) + "\n", self._lock)

    def close(self) -> None:
        self._bars.close()

    def _result(self, event: Token | Done | Status | Models) -> None:
        match event:
            case Token(text=text):
                self._out(harmless(text) if sys.stdout.isatty() else text)
            case Done():
                self._finish_line()
                if not self._quiet:
                    self._bars.above(self._paint("dim", _summary(event)))
            case Status():
                self._out(status_table(event, Paint(sys.stdout)) + "\n")
            case Models():
                self._out(models_table(event) + "\n")

    def _out(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        if text:
            self._mid_line = not text.endswith("\n")

    def _finish_line(self) -> None:
        if self._mid_line:
            self._out("\n")

    def _story(self, event: Listening | Joined | Ready | Process | Route | SwarmKey) -> str:
        match event:
            case Listening(peer_id=peer_id, addrs=addrs):
                return "\n".join([f"I am {peer_id}, listening on", *(f"  {addr}" for addr in addrs)])
            case Joined(peers=peers):
                return f"joined: {peers} peer{'' if peers == 1 else 's'}"
            case Ready(model=model, blocks=(start, end)):
                whole = f"blocks {start}:{end} of {event.num_blocks}"
                numbers = number_format(event.dtype, event.quantisation)
                size = f", {shown_size(event.cache_bytes)}" if event.cache_bytes else ""
                how = f"{numbers} on {event.device}, room for {event.cache_tokens} tokens of cache{size}"
                return f"{self._paint('green', 'ready')}: {model.name}, {whole} ({how})"
            case SwarmKey(file=file):
                return f"made {file}, which only you can read"
            case Process(name=name, pid=pid, blocks=blocks):
                return f"{name}: process {pid}" + (f", blocks {blocks[0]}:{blocks[1]}" if blocks else "")
            case Route(hops=hops):
                return self._paint("cyan", f"route: {_path(hops)}")

    def _red_error(self, failed: Failed) -> str:
        first, _, rest = error_text(failed).partition("\n")
        return self._paint("red", first) + (f"\n{rest}" if rest else "")


def error_text(failed: Failed) -> str:
    """One sentence, and on a line of its own what to do next."""
    return harmless(f"swarmnode: {failed.message}" + (f"\n  {failed.hint}" if failed.hint else ""))


def _choice(chosen: Chosen) -> str:
    """Which blocks, why, and how much memory of how much."""
    start, end = chosen.blocks
    others = f"{chosen.servers} other server{'' if chosen.servers == 1 else 's'} of this model"
    why = {
        "asked": "as named",
        "all": "all of them fit",
        "first": "nobody else serves this model",
        "gap": f"some of them are held by nobody else ({others})",
        "thin": f"there the swarm is slowest ({others})",
    }[chosen.why]
    need = chosen.weights_bytes + chosen.cache_bytes + chosen.work_bytes
    there = "" if chosen.limit_bytes is None else f" of {shown_size(chosen.limit_bytes)}"
    whole = f"; all {chosen.num_blocks} would need {shown_size(chosen.whole_bytes)}"
    return (
        f"blocks {start}:{end} of {chosen.num_blocks}: {why}\n"
        f"  up to {shown_size(need)}{there} of memory: {shown_size(chosen.weights_bytes)} of weights, "
        f"{shown_size(chosen.cache_bytes)} for a cache of {chosen.cache_tokens} tokens, "
        f"{shown_size(chosen.work_bytes)} to work in" + (whole if end - start < chosen.num_blocks else "")
    )


def _path(hops: tuple[Hop, ...]) -> str:
    return " → ".join(f"{short_peer(hop.peer_id)} {hop.blocks[0]}:{hop.blocks[1]}" for hop in hops)


def _summary(done: Done) -> str:
    parts = [f"{len(done.ids)} token{'' if len(done.ids) == 1 else 's'}", f"{done.ttft_seconds:.2f} s to the first"]
    if done.tokens_per_second is not None:
        parts.append(f"{done.tokens_per_second:.1f} tokens/s")
    if done.hop_seconds is not None:
        parts.append(f"{1000 * done.hop_seconds:.1f} ms a hop beyond computing")
    return f"{', '.join(parts)} ({done.finish_reason})"
