"""What every benchmark prints beside its figures: hardware, versions, command; and min/median/max of samples."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from swarmnode.node.machine import cpu_name

__all__ = ["host_facts", "print_report", "spread"]

LIBRARIES = ("swarmnode", "torch", "transformers", "libp2p", "trio")


def spread(samples: Sequence[float], digits: int = 4) -> dict[str, float | int]:
    """Minimum, median and maximum of the samples, and how many there were."""
    return {
        "min": round(min(samples), digits),
        "median": round(statistics.median(samples), digits),
        "max": round(max(samples), digits),
        "samples": len(samples),
    }


def host_facts() -> dict[str, object]:
    """The machine and the versions the figures were measured on."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
    }


def print_report(name: str, figures: dict[str, object]) -> None:
    """One JSON object on stdout."""
    command = " ".join(["scripts/bench", *sys.argv[1:]])
    report = {"bench": name, "command": command, "host": host_facts(), **figures}
    print(json.dumps(report, indent=2, ensure_ascii=False))


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
