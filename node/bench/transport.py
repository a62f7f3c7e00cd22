"""Transports side by side over loopback, two processes each: bulk, ping-pong, connecting, opening streams.

Each round takes one sample of every contender, so that a noisy minute hits them all. `ends.py` and the programs of
`scripts/peers` measure; this file starts them, reads what they say and compares.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .report import spread

__all__ = ["run"]

MIB = 1 << 20
SIZES = {"5 KiB": 5 << 10, "64 KiB": 64 << 10, "1 MiB": MIB, "10 MiB": 10 * MIB}
PATIENCE_SECONDS = 600.0
"""py-libp2p's QUIC under load takes minutes; only a hang takes this long."""
COMPARED_WITH = ("stock_tcp", "quinn", "raw_tcp")


@dataclass(frozen=True, slots=True)
class Work:
    """How much of everything one sample takes."""

    connects: int
    opens: int
    bulk_bytes: int
    trips: tuple[int, int, int, int]

    def arguments(self) -> list[str]:
        pairs = [number for pair in zip(SIZES.values(), self.trips, strict=True) for number in pair]
        return [str(number) for number in (self.connects, self.opens, self.bulk_bytes, *pairs)]


FULL = Work(connects=5, opens=20, bulk_bytes=256 * MIB, trips=(400, 200, 40, 8))
QUICK = Work(connects=2, opens=5, bulk_bytes=32 * MIB, trips=(50, 20, 5, 2))
# py-libp2p's own QUIC is a hundred times slower than the rest
FULL_SLOW = Work(connects=3, opens=10, bulk_bytes=8 * MIB, trips=(50, 10, 2, 1))
QUICK_SLOW = Work(connects=2, opens=3, bulk_bytes=2 * MIB, trips=(10, 3, 1, 1))


@dataclass(frozen=True, slots=True)
class Contender:
    """A transport under test.

    Attributes:
        foreign: which program of `scripts/peers` measures it; None for an end in Python.
        where: what that program listens on.
        slow: gets less to do.
    """

    name: str
    foreign: str | None = None
    where: str = ""
    slow: bool = False

    def listen_command(self) -> list[str]:
        return [*self._program(), "listen", *([self.where] if self.where else [])]

    def bench_command(self, addr: str, work: Work, *, load: bool) -> list[str]:
        return [*self._program(), "bench", *(["--load"] if load else []), addr, *work.arguments()]

    def _program(self) -> list[str]:
        if self.foreign is None:
            return [sys.executable, "-m", f"{__package__}.ends", self.name]
        return [_built(self.foreign)]


CONTENDERS = (
    Contender("raw_tcp"),
    Contender("quinn", foreign="quinn"),
    Contender("go_quic", foreign="go", where="/ip4/127.0.0.1/udp/0/quic-v1"),
    Contender("go_tcp", foreign="go", where="/ip4/127.0.0.1/tcp/0"),
    Contender("stock_tcp"),
    Contender("stock_quic", slow=True),
    Contender("ours_quic"),
    Contender("ours_quic_messages"),
    Contender("ours_tcp"),
    Contender("ours_tcp_messages"),
)

Sample = dict[str, list[float]]


class _Failed(Exception):
    """A contender could not be built or did not come to its end; the message says why in its last words."""


def run(argv: Sequence[str]) -> dict[str, object]:
    """Measure and return the figures."""
    parser = argparse.ArgumentParser(prog="scripts/bench transport", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of little work: to see that all of it runs")
    parser.add_argument("--only", default="", help="names of contenders, by commas")
    parser.add_argument("--no-load", action="store_true", help="leave out the samples with a torch load in the process")
    asked = parser.parse_args(argv)
    names = asked.only.split(",") if asked.only else [each.name for each in CONTENDERS]
    chosen = [each for each in CONTENDERS if each.name in names]
    taken: dict[tuple[str, bool], list[Sample]] = {}
    failures: dict[str, str] = {}
    loadavg = os.getloadavg()
    for _ in range(1 if asked.quick else asked.rounds):
        for contender in chosen:
            # a program without Python has no torch in its process
            for load in (False,) if asked.no_load or contender.foreign else (False, True):
                if contender.name in failures:
                    continue
                try:
                    sample = _take(contender, quick=asked.quick, load=load)
                except _Failed as failure:
                    failures[contender.name] = str(failure)
                    continue
                taken.setdefault((contender.name, load), []).append(sample)
                _tell(contender, sample, load=load)
    return {
        "load_average_before": [round(each, 1) for each in loadavg],
        "load_average_after": [round(each, 1) for each in os.getloadavg()],
        "figures": _figures(taken, load=False),
        "figures_with_torch_load": _figures(taken, load=True),
        "not_measured": failures,
    }


def _figures(taken: dict[tuple[str, bool], list[Sample]], *, load: bool) -> dict[str, object]:
    medians = {
        name: {what: statistics.median(_joined(samples, what)) for what in samples[0]}
        for (name, loaded), samples in taken.items()
        if loaded == load or name == "quinn"  # which runs without
    }
    figures: dict[str, object] = {}
    for (name, loaded), samples in taken.items():
        if loaded != load:
            continue
        bulk = _joined(samples, "bulk")
        figures[name] = {
            "bulk_mb_per_second": spread(bulk, 1),
            "ping_pong_ms": {size: _percentiles(_joined(samples, size)) for size in SIZES},
            "connect_ms": spread([1e3 * each for each in _joined(samples, "connect")], 2),
            "first_connect_ms": spread([1e3 * sample["connect"][0] for sample in samples], 2),
            "open_stream_ms": spread([1e3 * each for each in _joined(samples, "open")], 3),
            "ratios": {
                f"to_{other}": _ratios(medians[name], medians[other])
                for other in COMPARED_WITH
                if other in medians and other != name
            },
        }
    return figures


def _joined(samples: Sequence[Sample], what: str) -> list[float]:
    return [value for sample in samples for value in sample[what]]


def _percentiles(seconds: list[float]) -> dict[str, float | int]:
    ordered = sorted(1e3 * each for each in seconds)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p99": round(ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))], 3),
        "min": round(ordered[0], 3),
        "max": round(ordered[-1], 3),
        "samples": len(ordered),
    }


def _ratios(mine: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Bulk: above 1 is faster. Times: below 1 is faster; medians."""
    ratios = {"bulk": round(mine["bulk"] / other["bulk"], 3)}
    for what in (*SIZES, "connect", "open"):
        ratios[what] = round(mine[what] / other[what], 3)
    return ratios


def _take(contender: Contender, *, quick: bool, load: bool) -> Sample:
    """One sample of everything: seconds by name, and bulk in MB/s."""
    work = (QUICK_SLOW if contender.slow else QUICK) if quick else (FULL_SLOW if contender.slow else FULL)
    sizes = {size: name for name, size in SIZES.items()}
    sample: Sample = {}
    with _listening(contender) as addr:
        for line in _said(contender.bench_command(addr, work, load=load)):
            seconds = line.get("seconds", [])
            match line["event"]:
                case "connect" | "open" as event:
                    sample[event] = seconds
                case "bulk":
                    sample["bulk"] = [line["bytes"] / 1e6 / each for each in seconds]
                case "pong":
                    sample[sizes[line["bytes"]]] = seconds
                case "failed":
                    raise _Failed(f"{line['what']}: {line['why']}")
    return sample


@contextmanager
def _listening(contender: Contender) -> Iterator[str]:
    """The address of a process that serves until the block is left."""
    process = subprocess.Popen(
        contender.listen_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            first = process.stdout.readline()
            if not first:
                raise _Failed(_last_words(process.stderr.read()))
            yield json.loads(first)["addrs"][0]
        finally:
            process.kill()


def _said(command: list[str]) -> list[dict[str, Any]]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    except subprocess.TimeoutExpired as late:
        raise _Failed(f"was not done after {late.timeout:.0f} s") from late
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines or lines[-1]["event"] != "done":
        raise _Failed(_last_words(done.stderr or done.stdout))
    return lines


def _last_words(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "ended without a word"


@cache
def _built(name: str) -> str:
    """Where a program of `scripts/peers` is; the bench runs in the repository's root."""
    done = subprocess.run([str(Path("scripts/peers")), name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _Failed(_last_words(done.stderr))
    return done.stdout.strip()


def _tell(contender: Contender, sample: Sample, *, load: bool) -> None:
    trips = "  ".join(f"{1e3 * statistics.median(sample[size]):.2f}" for size in SIZES)
    name = contender.name + (" +torch" if load else "")
    opening = 1e3 * statistics.median(sample["open"])
    line = f"{name:26} {sample['bulk'][0]:7.1f} MB/s  ping-pong {trips} ms  open {opening:.2f} ms"
    print(line, file=sys.stderr, flush=True)
